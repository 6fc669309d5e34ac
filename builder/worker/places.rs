//! Where the bytes of a stack's files are: in a directory or a tar for each layer, opened when first needed and shared.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use snapshotter::layer::{Bytes, EntryKind, LayerIndex};

/// So many layers are kept open at a time: a stack can have more than a process may have descriptors.
const MAX_OPEN: usize = 64;

/// Where the bytes of a layer's files are.
pub(super) enum Place {
    Directory(PathBuf),
    Tar(PathBuf, Arc<LayerIndex>),
}

/// The places of a stack's layers, the lowest first.
pub(super) struct Places {
    places: Vec<Place>,
    open: Mutex<VecDeque<(usize, Open)>>,
}

#[derive(Clone)]
enum Open {
    Directory(Arc<OwnedFd>),
    Tar(Arc<File>),
}

impl Places {
    pub(super) fn new(places: Vec<Place>) -> Self {
        Self { places, open: Mutex::default() }
    }

    /// The bytes of a regular file; nothing in its path is followed.
    pub(super) fn bytes(&self, layer: usize, path: &[u8]) -> io::Result<Bytes> {
        let place = self.places.get(layer).ok_or(io::ErrorKind::NotFound)?;
        match (self.opened(layer, place)?, place) {
            (Open::Directory(root), _) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                Ok(Bytes::Whole(sys::path::open(&*root, path, sys::path::Links::Refuse, flags, 0)?.into()))
            }
            (Open::Tar(file), Place::Tar(_, index)) => match index.get(path).map(|entry| &entry.kind) {
                Some(&EntryKind::File { size, offset: Some(offset), .. }) => Ok(Bytes::Part { file, offset, size }),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
            (Open::Tar(_), Place::Directory(_)) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn opened(&self, layer: usize, place: &Place) -> io::Result<Open> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = open.iter().find(|(number, _)| *number == layer) {
            return Ok(found.clone());
        }
        let fresh = match place {
            Place::Directory(path) => Open::Directory(Arc::new(sys::file::open_root(path)?)),
            Place::Tar(path, _) => Open::Tar(Arc::new(File::open(path)?)),
        };
        if open.len() >= MAX_OPEN {
            open.pop_front();
        }
        open.push_back((layer, fresh.clone()));
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use snapshotter::layer::{Entry, index_tar};

    use super::*;

    #[test]
    fn layers_are_opened_once_and_not_all_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let mut places = Vec::new();
        for number in 0..200 {
            let directory = temp.path().join(number.to_string());
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("file"), number.to_string()).unwrap();
            places.push(Place::Directory(directory));
        }
        let mut writer = snapshotter::layer::LayerWriter::new(Vec::new());
        writer.append_file(Entry::file("file", 3, 0o644), &b"tar"[..], snapshotter::layer::Expect::Nothing).unwrap();
        let (_, tar) = writer.finish().unwrap();
        std::fs::write(temp.path().join("tar"), &tar).unwrap();
        let index = index_tar(&*tar, &|| false).unwrap().index;
        places.push(Place::Tar(temp.path().join("tar"), Arc::new(index)));
        let places = Places::new(places);
        let read = |layer: usize| {
            let mut text = String::new();
            places.bytes(layer, b"file").unwrap().reader().read_to_string(&mut text).unwrap();
            text
        };
        for _ in 0..2 {
            for layer in 0..200 {
                assert_eq!(read(layer), layer.to_string());
            }
            assert_eq!(read(200), "tar");
        }
        assert_eq!(places.open.lock().unwrap().len(), MAX_OPEN);
        // One descriptor serves readers that read at the same time.
        let (mut one, mut other) =
            (places.bytes(200, b"file").unwrap().reader(), places.bytes(200, b"file").unwrap().reader());
        let mut byte = [0];
        one.read_exact(&mut byte).unwrap();
        other.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"t");
        assert!(places.bytes(0, b"../0/file").is_err());
    }
}
