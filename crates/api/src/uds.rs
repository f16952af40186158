//! gRPC over unix sockets, the only way in until there is mTLS. The peer must run as the same user, or as root.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest path of a unix socket that Linux takes, without the final zero.
pub const LONGEST_PATH: usize = 107;

/// Connects lazily; a call on a dead socket fails at once with `Unavailable`, and the next one connects again.
pub fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    Endpoint::from_static("http://cell.local").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

/// Listens on `socket` (mode 0600), replacing a dead one. Connections of other users are dropped before they are
/// served.
///
/// # Errors
/// When the path is too long or taken by a living listener, or cannot be created.
pub fn listen(socket: &Path) -> io::Result<impl Stream<Item = io::Result<UnixStream>> + use<>> {
    if socket.as_os_str().len() > LONGEST_PATH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "socket path {} is longer than {LONGEST_PATH} bytes",
                socket.display()
            ),
        ));
    }
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("somebody already listens at {}", socket.display()),
            ));
        }
        Err(_) => remove_dead(socket)?,
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(async_accept(listener))
}

/// Removes a socket that nobody listens at, and nothing else.
fn remove_dead(socket: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(socket),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} is not a socket; it was left alone", socket.display()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn async_accept(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + use<> {
    use tokio_stream::StreamExt;
    let own = own_uid();
    tokio_stream::wrappers::UnixListenerStream::new(listener).filter(move |connection| {
        match connection {
            Ok(stream) => stream
                .peer_cred()
                .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0),
            Err(_) => true,
        }
    })
}

fn own_uid() -> u32 {
    // The owner of our own /proc entry is our effective user.
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(error) => panic!("invariant: /proc is mounted: {error}"),
    })
}
