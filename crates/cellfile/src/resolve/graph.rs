//! Cycles among names.

use std::collections::{BTreeMap, BTreeSet};

/// A cycle, as a path whose last name is its first; none when there is none. Edges to unknown names do not count.
///
/// Without recursion: a chain of names in a cell file may be as long as the file.
pub(crate) fn cycle<'a>(edges: &[(&'a str, Vec<&'a str>)]) -> Option<Vec<&'a str>> {
    let mut left: BTreeMap<&str, Vec<&str>> = edges.iter().cloned().collect();
    // Take away, again and again, what points at nothing that is left. What cannot be taken away leads into a cycle.
    let mut pointed_at_by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for (from, targets) in edges {
        let targets: BTreeSet<&str> = targets
            .iter()
            .copied()
            .filter(|to| left.contains_key(to))
            .collect();
        open.insert(*from, targets.len());
        for to in targets {
            pointed_at_by.entry(to).or_default().push(*from);
        }
    }
    let mut free: Vec<&str> = open
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(name, _)| *name)
        .collect();
    while let Some(name) = free.pop() {
        left.remove(name);
        for from in pointed_at_by.get(name).into_iter().flatten() {
            if let Some(count) = open.get_mut(from) {
                *count -= 1;
                if *count == 0 {
                    free.push(*from);
                }
            }
        }
    }
    let start = edges
        .iter()
        .map(|(name, _)| *name)
        .find(|name| left.contains_key(name))?;
    let mut path = vec![start];
    loop {
        let last = path.last()?;
        let next = left
            .get(last)?
            .iter()
            .copied()
            .find(|to| left.contains_key(to))?;
        if let Some(begin) = path.iter().position(|name| *name == next) {
            let mut cycle = path.split_off(begin);
            cycle.push(next);
            return Some(cycle);
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_and_nothing_else() {
        let graph = [("a", vec!["b", "x"]), ("b", vec!["c"]), ("c", vec![])];
        assert_eq!(cycle(&graph), None);
        let graph = [
            ("start", vec!["a"]),
            ("a", vec!["b"]),
            ("b", vec!["free", "a"]),
            ("free", vec![]),
        ];
        assert_eq!(cycle(&graph), Some(vec!["a", "b", "a"]));
        let graph = [("a", vec!["a"])];
        assert_eq!(cycle(&graph), Some(vec!["a", "a"]));
    }
}
