//! Sparse members: a map says which parts of a file are stored, the rest is zeros. GNU tar has one form in its own headers
//! and three in PAX records.

use std::collections::VecDeque;

use super::read::{Records, decimal, number};

/// Offset and length of the stored parts.
type Map = Vec<(u64, u64)>;

/// What PAX records say of a sparse member.
pub(crate) struct Pax {
    /// The real name; the plain header has a made-up one.
    pub(crate) name: Option<Vec<u8>>,
    /// Length of the file.
    pub(crate) size: u64,
    /// `None`: it stands before the data (format 1.0).
    pub(crate) map: Option<Map>,
}

impl Pax {
    /// Takes the records of formats 0.0, 0.1 and 1.0 out of `records`.
    pub(crate) fn take(records: &mut Records) -> Result<Option<Self>, String> {
        let mut take = |key: &str| records.remove(format!("GNU.sparse.{key}").as_bytes());
        let (name, real, size, map, major, minor) =
            (take("name"), take("realsize"), take("size"), take("map"), take("major"), take("minor"));
        take("numblocks");
        let in_data = match (major.as_deref(), minor.as_deref()) {
            (Some(b"1"), Some(b"0")) => true,
            (None, None) | (Some(b"0"), Some(b"0" | b"1")) => false,
            _ => return Err("unknown kind of sparse file".to_owned()),
        };
        if !in_data && map.is_none() {
            return Ok(None);
        }
        let size = decimal(&real.or(size).ok_or("a sparse file without a size")?)?;
        let map = match map {
            _ if in_data => None,
            None => None,
            Some(list) => {
                let numbers: Vec<u64> = list.split(|&b| b == b',').map(decimal).collect::<Result<_, _>>()?;
                if !numbers.len().is_multiple_of(2) {
                    return Err("invalid map of a sparse file".to_owned());
                }
                Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
            }
        };
        Ok(Some(Self { name, size, map }))
    }
}

/// Length and map in a GNU header of type `S` and the blocks that extend it (without their last 8 bytes).
pub(crate) fn gnu_map(header: &[u8; 512], extensions: &[u8]) -> Result<(u64, Map), String> {
    let unsigned = |field: &[u8]| u64::try_from(number(field)?).map_err(|_| "negative number".to_owned());
    let mut map = Map::new();
    for part in header[386..386 + 96].chunks_exact(24).chain(extensions.chunks_exact(24)) {
        if part[0] == 0 || part[12] == 0 {
            continue;
        }
        map.push((unsigned(&part[..12])?, unsigned(&part[12..])?));
    }
    Ok((unsigned(&header[483..495])?, map))
}

/// Where in a file we are, and what is left of it.
#[derive(Default)]
pub(crate) struct Holes {
    position: u64,
    size: u64,
    map: VecDeque<(u64, u64)>,
}

/// What comes next in a file.
pub(crate) enum Hole {
    /// Zeros that are not stored.
    Zeros(u64),
    /// At most so many stored bytes; 0 at the end.
    Data(u64),
}

impl Holes {
    /// A file without holes.
    pub(crate) fn none(size: u64) -> Self {
        Self { position: 0, size, map: VecDeque::from([(0, size)]) }
    }

    /// Checks the map: parts in order, within the file, and exactly as long as what is stored.
    pub(crate) fn new(size: u64, map: Map, stored: u64) -> Result<Self, String> {
        let mut end = 0;
        let mut sum = 0_u64;
        for &(offset, length) in &map {
            if offset < end {
                return Err("the parts of a sparse file overlap".to_owned());
            }
            end =
                offset.checked_add(length).filter(|&end| end <= size).ok_or("a sparse file is longer than it says")?;
            sum += length;
        }
        if sum != stored {
            return Err("a sparse file's map does not fit its data".to_owned());
        }
        Ok(Self { position: 0, size, map: map.into_iter().filter(|part| part.1 > 0).collect() })
    }

    /// What comes next. Zeros count as consumed, data do not.
    pub(crate) fn next(&mut self) -> Hole {
        let next = self.map.front().map_or(self.size, |part| part.0);
        if self.position < next {
            let zeros = next - self.position;
            self.position = next;
            return Hole::Zeros(zeros);
        }
        Hole::Data(self.map.front().map_or(0, |part| part.1))
    }

    /// So many stored bytes were consumed.
    pub(crate) fn consumed(&mut self, length: u64) {
        self.position += length;
        if let Some(part) = self.map.front_mut() {
            part.0 += length;
            part.1 = part.1.saturating_sub(length);
            if part.1 == 0 {
                self.map.pop_front();
            }
        }
    }
}
