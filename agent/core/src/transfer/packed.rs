//! Long lists in little memory: values one after the other in one piece, as the journal writes them, each unpacked when it is
//! asked for. A name of a volume takes some 50 bytes so, and several hundred as a value with lists of its own.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list of values. Those that begin with bytes (a path) tell those without being unpacked, see [`Packed::key`].
#[derive(Clone)]
pub struct Packed<T> {
    bytes: Vec<u8>,
    /// Where each begins. A list is shorter than 4 GiB: paths and ranges have limits of their own.
    starts: Vec<u32>,
    of: PhantomData<T>,
}

impl<T> Default for Packed<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), starts: Vec::new(), of: PhantomData }
    }
}

impl<T> Packed<T> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The bytes that a value begins with; only for values whose first field is such.
    pub(super) fn key(&self, index: usize) -> Option<&[u8]> {
        let (key, _) = postcard::take_from_bytes(self.from(index)?).ok()?;
        Some(key)
    }

    /// The place of the value with this key, in a list that is in order of its keys.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.key(middle)?.cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn from(&self, index: usize) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(*self.starts.get(index)?).ok()?..)
    }
}

impl<T: DeserializeOwned> Packed<T> {
    /// A value.
    pub fn get(&self, index: usize) -> Option<T> {
        let (value, _) = postcard::take_from_bytes(self.from(index)?).ok()?;
        Some(value)
    }

    /// All values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + DoubleEndedIterator + '_ {
        (0..self.len()).map(|index| self.get(index).expect("what was packed can be unpacked"))
    }
}

impl<T> Packed<T> {
    /// Puts a value, or something that is packed alike, at the end.
    pub(super) fn push(&mut self, value: &impl Serialize) {
        self.starts.push(u32::try_from(self.bytes.len()).expect("a list within its limits"));
        // Serializing into memory fails for types that postcard does not know; ours are fixed at compile time.
        self.bytes = postcard::to_extend(value, std::mem::take(&mut self.bytes))
            .expect("values are of types that postcard encodes");
    }

    /// No more is to come.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.starts.shrink_to_fit();
    }
}

impl<T> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len())
    }
}

impl<T> PartialEq for Packed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Packed<T> {}

impl<T: Serialize> FromIterator<T> for Packed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut packed = Self::default();
        values.into_iter().for_each(|value| packed.push(&value));
        packed.shrink();
        packed
    }
}

/// As a `Vec` of such values is written.
impl<T: Serialize + DeserializeOwned> Serialize for Packed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        for value in self.iter() {
            list.serialize_element(&value)?;
        }
        list.end()
    }
}

impl<'de, T: Serialize + Deserialize<'de>> Deserialize<'de> for Packed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each<T>(PhantomData<T>);

        impl<'de, T: Serialize + Deserialize<'de>> Visitor<'de> for Each<T> {
            type Value = Packed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Packed<T>, A::Error> {
                let mut packed = Packed::default();
                while let Some(value) = list.next_element::<T>()? {
                    packed.push(&value);
                }
                packed.shrink();
                Ok(packed)
            }
        }

        deserializer.deserialize_seq(Each(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packed_list_is_the_list_and_is_written_alike(
            values in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..40), any::<u64>(), 0..50),
            other in proptest::collection::vec(any::<u8>(), 0..3),
        ) {
            let list: Vec<(Vec<u8>, u64)> = values.into_iter().collect();
            let packed: Packed<(Vec<u8>, u64)> = list.iter().cloned().collect();
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), list.clone());
            for (index, (key, _)) in list.iter().enumerate() {
                prop_assert_eq!(packed.key(index), Some(key.as_slice()));
                prop_assert_eq!(packed.find(key), Some(index));
            }
            prop_assert_eq!(packed.find(&other), list.iter().position(|(key, _)| *key == other));
            let written = postcard::to_allocvec(&packed).expect("written");
            prop_assert_eq!(&written, &postcard::to_allocvec(&list).expect("written"));
            prop_assert_eq!(postcard::from_bytes::<Packed<(Vec<u8>, u64)>>(&written).expect("read"), packed);
        }
    }
}
