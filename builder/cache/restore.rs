//! Cache mounts that a shared cache has the contents of: fetched before a step sees the new directory, and never a reason to
//! fail. What is unpacked is anybody's tar, and treated like a layer: nothing of it comes to lie outside its directory.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use graph::Digest;
use registry::Client;
use snapshotter::Room;
use snapshotter::layer::{ApplyOptions, Marks, apply};
use solver::{RunContext, Status};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::import::{Imports, ReadError, read_blob};
use super::mounts::{CachedMount, LONGEST, MOST_PARTS, Part, is_portable, name_of};
use super::spec::Place;
use crate::images::registry_descriptor;
use crate::progress::bytes;
use crate::worker::blocking;

/// Mounts that hold more are not fetched: a few bytes can stand for as many as somebody likes.
const MOST: u64 = 64 << 30;

/// What a cache mount held elsewhere, fetched.
pub(crate) struct Restored {
    /// Its name is gone already.
    tar: File,
    digest: Digest,
}

impl Imports {
    /// Whether it is worth asking.
    pub(crate) fn may_have_mounts(&self) -> bool {
        self.sources.iter().any(|source| source.from.mounts)
    }

    /// What a cache mount held, from the first cache that has it. `lost` hears of blobs that cannot be had.
    pub(crate) async fn mount(
        &self,
        context: &RunContext,
        id: &str,
        scratch: &Path,
        lost: impl Fn(&Digest),
    ) -> Option<Restored> {
        for source in self.sources.iter().filter(|source| source.from.mounts) {
            let place = &source.from.place;
            let Some(loaded) = source.table.get_or_init(|| self.read(context, place)).await else { continue };
            let Some(mount) = loaded.table.mounts.get(id) else { continue };
            let fetched = tokio::select! {
                () = context.cancelled.cancelled() => return None,
                fetched = fetch(&self.remote.client, place, mount, (id, scratch), context, &lost) => fetched,
            };
            match fetched {
                Ok(restored) => return Some(restored),
                Err(error) => {
                    context.progress.warn(format!(
                        "the cache mount {} in {place} is not used: {}",
                        name_of(id),
                        super::import::causes(&error)
                    ));
                }
            }
        }
        None
    }
}

async fn fetch(
    client: &Client,
    place: &Place,
    mount: &CachedMount,
    (id, scratch): (&str, &Path),
    context: &RunContext,
    lost: &impl Fn(&Digest),
) -> Result<Restored, ReadError> {
    let failed = |source| ReadError::File { path: scratch.to_owned(), source };
    let total = mount.parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.size));
    if mount.parts.len() > MOST_PARTS || !mount.parts.iter().all(is_plausible) {
        return Err(ReadError::Malformed("what it says of its parts makes no sense".into()));
    }
    if total > MOST {
        return Err(ReadError::Malformed(format!("it says that it holds {}", bytes(total))));
    }
    let mut room = Room::at(scratch);
    let mut tar = tokio::fs::File::from_std(tempfile::tempfile_in(scratch).map_err(failed)?);
    let name = format!("restoring cache mount {}", name_of(id));
    let mut current = 0;
    for part in &mount.parts {
        let piece = piece(client, place, part).await.inspect_err(|error| {
            if !matches!(error, ReadError::Registry(error) if error.is_transient()) {
                lost(&part.blob.digest);
            }
        })?;
        room.take(part.size).map_err(failed)?;
        tar.write_all(&piece).await.map_err(failed)?;
        current += part.size;
        context.progress.status(Status { id: name.clone(), current, total, done: current == total });
    }
    tar.flush().await.map_err(failed)?;
    tar.rewind().await.map_err(failed)?;
    Ok(Restored { tar: tar.into_std().await, digest: mount.tar })
}

/// Whether a part has a length that it can have, and a blob that is no longer than what becomes of the worst of them.
fn is_plausible(part: &Part) -> bool {
    let size = usize::try_from(part.size).unwrap_or(usize::MAX);
    (1..=LONGEST).contains(&size) && part.blob.size <= zstd::zstd_safe::compress_bound(size) as u64
}

async fn piece(client: &Client, place: &Place, part: &Part) -> Result<Vec<u8>, ReadError> {
    let sent = match place {
        Place::Registry(reference) => {
            let blob = registry_descriptor(&part.blob).map_err(ReadError::Malformed)?;
            Some(client.small_blob(reference.repository(), &blob, part.blob.size).await?)
        }
        Place::Local { .. } | Place::Inline => None,
    };
    let (place, part) = (place.clone(), part.clone());
    let read = move || {
        let compressed = match (sent, &place) {
            (Some(sent), _) => sent,
            (None, Place::Local { path, .. }) => read_blob(path, &part.blob.digest, part.blob.size)?.into(),
            (None, _) => return Err(ReadError::Malformed("an image holds none".into())),
        };
        unfold(&part, &compressed).map_err(ReadError::Malformed)
    };
    blocking(move || Ok(read())).await.unwrap_or_else(|error| Err(ReadError::Malformed(error.to_string())))
}

/// The bytes of a part, which are what the cache says.
fn unfold(part: &Part, compressed: &[u8]) -> Result<Vec<u8>, String> {
    let length = usize::try_from(part.size).unwrap_or(LONGEST).min(LONGEST);
    let piece =
        zstd::bulk::decompress(compressed, length).map_err(|error| format!("a part of it is damaged: {error}"))?;
    if piece.len() as u64 == part.size && Digest::of(&piece) == part.raw {
        return Ok(piece);
    }
    Err("a part of it is not what the cache says".into())
}

impl Restored {
    /// Fills a new directory, which stays empty where that cannot be done; then says why. Mode and owner of the directory are
    /// what the step asks for.
    ///
    /// # Errors
    /// The directory cannot be emptied again.
    pub(crate) fn unpack(
        self,
        directory: &Path,
        options: &ApplyOptions,
        cancelled: &dyn Fn() -> bool,
    ) -> io::Result<Option<String>> {
        let before = fs::metadata(directory)?;
        let options = ApplyOptions { marks: Marks::None, ..*options };
        let why = match apply(BufReader::new(self.tar), directory, &options, cancelled) {
            Ok(applied) if applied.diff_id != self.digest => Some("it is not what the cache says".to_owned()),
            Ok(applied) if !is_portable(&applied.index) => {
                Some("it holds more than files, directories and links".to_owned())
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if why.is_some() {
            snapshotter::empty_directory(directory)?;
        }
        let now = fs::metadata(directory)?;
        if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
            chown(directory, Some(before.uid()), Some(before.gid()))?;
        }
        fs::set_permissions(directory, fs::Permissions::from_mode(before.mode() & 0o7777))?;
        Ok(why)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::export::Descriptor;

    fn part(bytes: &[u8], size: u64) -> (Part, Vec<u8>) {
        let compressed = zstd::bulk::compress(bytes, 3).unwrap();
        let blob = Descriptor::new("x", Digest::of(&compressed), compressed.len() as u64);
        (Part { raw: Digest::of(bytes), size, blob }, compressed)
    }

    #[test]
    fn a_part_is_what_is_said_of_it() {
        let bytes = vec![7; 100_000];
        let (good, compressed) = part(&bytes, 100_000);
        assert_eq!(unfold(&good, &compressed).unwrap(), bytes);
        for size in [0, 99_999, 100_001, u64::MAX] {
            assert!(unfold(&part(&bytes, size).0, &compressed).is_err(), "{size}");
        }
        assert!(unfold(&good, &compressed[1..]).is_err());
        let (other, _) = part(b"other", 100_000);
        assert!(unfold(&other, &compressed).is_err());
    }

    #[test]
    fn a_part_is_something_and_its_blob_not_much_more() {
        let sized = |size, blob| {
            let (mut part, _) = part(b"x", size);
            part.blob.size = blob;
            part
        };
        // Noise does not become smaller.
        let noise: Vec<u8> =
            (0..3_u32 << 15).flat_map(|n| Digest::of(&n.to_le_bytes()).as_bytes()[..8].to_vec()).collect();
        assert!(is_plausible(&part(&noise, noise.len() as u64).0));
        assert!(is_plausible(&part(b"x", 1).0) && is_plausible(&sized(LONGEST as u64, LONGEST as u64)));
        for (size, blob) in
            [(0, 1), (1, 4096), (LONGEST as u64, 2 * LONGEST as u64), (LONGEST as u64 + 1, 1), (u64::MAX, 1)]
        {
            assert!(!is_plausible(&sized(size, blob)), "{size} {blob}");
        }
    }

    fn restored(tar: &[u8], digest: Digest) -> Restored {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(tar).unwrap();
        file.rewind().unwrap();
        Restored { tar: file, digest }
    }

    fn one(path: &str, kind: u8, target: &str, body: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(b"0000777\0");
        header[108..124].copy_from_slice(b"0000000\x000000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", body.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = kind;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[329..345].copy_from_slice(b"0000001\x000000003\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut tar = header.to_vec();
        tar.extend_from_slice(body);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar
    }

    fn unpacked(members: &[Vec<u8>], digest: Option<Digest>) -> (tempfile::TempDir, Option<String>) {
        let mut tar = members.concat();
        tar.extend_from_slice(&[0; 1024]);
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("mount");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o750)).unwrap();
        let options = ApplyOptions { ownership: snapshotter::layer::Ownership::Skip, ..ApplyOptions::default() };
        let digest = digest.unwrap_or_else(|| Digest::of(&tar));
        let why = restored(&tar, digest).unpack(&directory, &options, &|| false).unwrap();
        let names: Vec<_> = fs::read_dir(outer.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["mount"], "nothing beside it");
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o750);
        if why.is_some() {
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "{why:?}");
        }
        (outer, why)
    }

    #[test]
    fn a_directory_is_filled_or_stays_empty() {
        let good = one("a/f", b'0', "", b"content");
        let (outer, why) = unpacked(std::slice::from_ref(&good), None);
        assert_eq!(why, None);
        assert_eq!(fs::read(outer.path().join("mount/a/f")).unwrap(), b"content");
        // The directory's own mode is not the tar's to say.
        assert_eq!(unpacked(&[one("./", b'5', "", b""), good.clone()], None).1, None);
        for bad in [one("../out", b'0', "", b"x"), one("dev", b'3', "", b""), one("link", b'1', "/etc/passwd", b"")] {
            unpacked(&[good.clone(), bad], None);
        }
        assert!(unpacked(&[good.clone(), one("dev", b'3', "", b"")], None).1.is_some());
        assert!(unpacked(&[good.clone(), one("f/", b'5', "", b"")[..300].to_vec()], None).1.is_some());
        assert!(unpacked(&[good], Some(Digest::of(b"other"))).1.is_some());
        // What a link leads to is not written to.
        let outside = tempfile::tempdir().unwrap();
        let link = one("out", b'2', outside.path().to_str().unwrap(), b"");
        unpacked(&[link, one("out/file", b'0', "", b"x")], None);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
