//! Users and groups, as the C library finds them: `/etc/passwd` and whatever else nsswitch names.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
    pub(crate) comment: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) gid: u32,
    /// Those who are in it beside those whose primary group it is.
    pub(crate) members: Vec<String>,
}

/// The first size of the buffer that the C library fills; an entry of a large group needs more.
const BUFFER: usize = 4096;
const LARGEST_BUFFER: usize = 16 << 20;

pub(crate) fn user(name: &str) -> io::Result<Option<User>> {
    let name = CString::new(name)?;
    // SAFETY: the pointers are to memory of ours that lives through the call, and the length is its own.
    passwd(|entry, buffer, length, found| unsafe {
        libc::getpwnam_r(name.as_ptr(), entry, buffer, length, found)
    })
}

pub(crate) fn user_of(uid: u32) -> io::Result<Option<User>> {
    // SAFETY: as in `user`.
    passwd(|entry, buffer, length, found| unsafe {
        libc::getpwuid_r(uid, entry, buffer, length, found)
    })
}

pub(crate) fn group(name: &str) -> io::Result<Option<Group>> {
    let name = CString::new(name)?;
    // SAFETY: as in `user`.
    groups(|entry, buffer, length, found| unsafe {
        libc::getgrnam_r(name.as_ptr(), entry, buffer, length, found)
    })
}

pub(crate) fn group_of(gid: u32) -> io::Result<Option<Group>> {
    // SAFETY: as in `user`.
    groups(|entry, buffer, length, found| unsafe {
        libc::getgrgid_r(gid, entry, buffer, length, found)
    })
}

/// A name or a number, as a number.
pub(crate) fn uid_of(name: &str) -> io::Result<Option<u32>> {
    match name.parse() {
        Ok(uid) => Ok(Some(uid)),
        Err(_) => Ok(user(name)?.map(|user| user.uid)),
    }
}

/// A name or a number, as a number.
pub(crate) fn gid_of(name: &str) -> io::Result<Option<u32>> {
    match name.parse() {
        Ok(gid) => Ok(Some(gid)),
        Err(_) => Ok(group(name)?.map(|group| group.gid)),
    }
}

/// The names of all groups that a user is in, the primary one first.
pub(crate) fn groups_of(user: &User) -> io::Result<Vec<String>> {
    let name = CString::new(user.name.as_str())?;
    let mut gids: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = c_int::try_from(gids.len()).unwrap_or(c_int::MAX);
        // SAFETY: `count` is the length of the list, and the call writes no more than that.
        let fits =
            unsafe { libc::getgrouplist(name.as_ptr(), user.gid, gids.as_mut_ptr(), &mut count) };
        let count = usize::try_from(count).unwrap_or_default();
        if fits >= 0 {
            gids.truncate(count);
            break;
        }
        if gids.len() >= 1 << 16 {
            return Err(io::Error::other("the user is in too many groups"));
        }
        let more = gids.len() * 2;
        gids.resize(more.max(count), 0);
    }
    gids.into_iter()
        .map(|gid| Ok(group_of(gid)?.map_or_else(|| gid.to_string(), |group| group.name)))
        .collect()
}

fn passwd(
    call: impl Fn(*mut libc::passwd, *mut c_char, usize, *mut *mut libc::passwd) -> c_int,
) -> io::Result<Option<User>> {
    let mut buffer = vec![0; BUFFER];
    loop {
        // SAFETY: plain pointers and numbers, for which zero is a value.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        let code = call(&mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found);
        match answer(code, found.is_null(), &mut buffer)? {
            Answer::Again => {}
            Answer::Nobody => return Ok(None),
            Answer::Found => {
                return Ok(Some(User {
                    name: text(entry.pw_name),
                    uid: entry.pw_uid,
                    gid: entry.pw_gid,
                    home: PathBuf::from(text(entry.pw_dir)),
                    shell: text(entry.pw_shell),
                    comment: text(entry.pw_gecos),
                }));
            }
        }
    }
}

fn groups(
    call: impl Fn(*mut libc::group, *mut c_char, usize, *mut *mut libc::group) -> c_int,
) -> io::Result<Option<Group>> {
    let mut buffer = vec![0; BUFFER];
    loop {
        // SAFETY: as in `passwd`.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        let code = call(&mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found);
        match answer(code, found.is_null(), &mut buffer)? {
            Answer::Again => {}
            Answer::Nobody => return Ok(None),
            Answer::Found => {
                return Ok(Some(Group {
                    name: text(entry.gr_name),
                    gid: entry.gr_gid,
                    members: members(entry.gr_mem),
                }));
            }
        }
    }
}

enum Answer {
    Found,
    Nobody,
    /// The buffer was too small and is larger now.
    Again,
}

fn answer(code: c_int, nothing: bool, buffer: &mut Vec<c_char>) -> io::Result<Answer> {
    match code {
        0 if nothing => Ok(Answer::Nobody),
        0 => Ok(Answer::Found),
        libc::ERANGE if buffer.len() < LARGEST_BUFFER => {
            buffer.resize(buffer.len() * 4, 0);
            Ok(Answer::Again)
        }
        libc::EINTR => Ok(Answer::Again),
        // getpwnam(3) names these as ways in which libraries say that there is none.
        libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(Answer::Nobody),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the C library ends its texts with zero, and the buffer that holds them is still there.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_string_lossy().into_owned()
}

fn members(mut list: *const *mut c_char) -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: a list of pointers that ends with null, in the buffer that is still there.
    while !list.is_null() && !unsafe { *list }.is_null() {
        // SAFETY: as above.
        names.push(text(unsafe { *list }));
        // SAFETY: the null that ends the list was not reached.
        list = unsafe { list.add(1) };
    }
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_else_is_invented() {
        let root = user("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        assert_eq!(user_of(0).unwrap(), Some(root.clone()));
        assert_eq!(
            group_of(0).unwrap().map(|group| group.name),
            Some("root".into())
        );
        assert!(groups_of(&root).unwrap().contains(&"root".to_owned()));
        assert_eq!(user("no-such-user").unwrap(), None);
        assert_eq!(group("no-such-group").unwrap(), None);
        assert!(user("zero\0byte").is_err());
        assert_eq!(uid_of("4711").unwrap(), Some(4711));
        assert_eq!(gid_of("root").unwrap(), Some(0));
    }
}
