//! Things under small numbers that epoll can carry. A number is used again, so each use has a generation: an event that
//! was fetched before its connection was closed finds nothing, and not the next connection in the same place.

/// Names one use of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    /// 24 bits: together with the index and a kind it fits into the 64 bits that epoll keeps.
    generation: u32,
}

impl Key {
    const GENERATIONS: u32 = 1 << 24;

    /// Below the eight bits of `kind`.
    pub(super) fn pack(self, kind: u8) -> u64 {
        u64::from(kind) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn unpack(packed: u64) -> (u8, Self) {
        let key = Self {
            index: (packed & 0xffff_ffff) as u32,
            generation: (packed >> 32) as u32 % Self::GENERATIONS,
        };
        ((packed >> 56) as u8, key)
    }
}

pub(super) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push((0, None));
                (self.places.len() - 1) as u32
            }
        };
        let place = &mut self.places[index as usize];
        place.1 = Some(value);
        Key {
            index,
            generation: place.0,
        }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.places.get_mut(key.index as usize)?;
        value.as_mut().filter(|_| *generation == key.generation)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, value) = self.places.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let value = value.take()?;
        *generation = (*generation + 1) % Key::GENERATIONS;
        self.free.push(key.index);
        Some(value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places
            .iter_mut()
            .filter_map(|(_, value)| value.as_mut())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(index, (generation, value))| {
                let generation = *generation;
                value
                    .as_ref()
                    .map(|value| (Key { index, generation }, value))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_used_again_has_another_key() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!(slab.remove(a), Some('a'));
        let c = slab.insert('c');
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get_mut(c), Some(&mut 'c'));
        assert_eq!(Key::unpack(c.pack(7)), (7, c));
        assert_eq!(
            slab.iter()
                .map(|(key, value)| (key, *value))
                .collect::<Vec<_>>(),
            [(c, 'c'), (b, 'b')]
        );
        assert_eq!(slab.len(), 2);
    }
}
