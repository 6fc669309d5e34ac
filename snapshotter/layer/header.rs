//! Tar headers: plain ustar, preceded by PAX records where that cannot say it.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::entry::{Entry, EntryKind, show, split};
use super::error::LayerError;

/// Size of a tar block.
pub(crate) const BLOCK: usize = 512;
/// Prefix of a removed name.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Name that marks a directory as opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of the PAX records that hold extended attributes.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

/// The data of large files begin at multiples of this, the usual block of a file system: those can be cloned
/// (`FICLONERANGE` of ioctl_ficlonerange(2)) into the layer and out of it.
pub(crate) const ALIGNMENT: u64 = 4096;
/// What is large enough to be worth the padding, a record `comment` (pax, POSIX.1-2008) of at most 4608 bytes.
pub(crate) const LARGE: u64 = 1 << 20;

/// What fits in the seven octal digits of mode, owner and device fields.
const MAX_SHORT: u64 = 0o777_7777;
/// What fits in the eleven octal digits of size and mtime.
const MAX_LONG: u64 = 0o777_7777_7777;

/// Appends the header blocks of `entry`. Times are whole seconds. Implicit directories have no header.
///
/// If `out` ends at the offset `at` of the archive, the data of a large file, which follow, begin at a multiple of
/// [`ALIGNMENT`].
pub(crate) fn push_header(out: &mut Vec<u8>, entry: &Entry, at: Option<u64>) -> Result<(), LayerError> {
    let mut header = Fields { mode: entry.mode.into(), ..Fields::default() };
    header.name.clone_from(&entry.path);
    match &entry.kind {
        EntryKind::File { size, .. } => {
            header.size = *size;
            header.align = at.filter(|_| *size >= LARGE);
        }
        EntryKind::Dir { opaque, implicit } => {
            if !implicit {
                if header.name.is_empty() {
                    header.name.push(b'.');
                }
                header.name.push(b'/');
                header.kind = EntryType::Directory;
                header.describe(entry)?;
                header.push(out);
            }
            if *opaque {
                Fields { name: super::join(&entry.path, OPAQUE), ..Fields::default() }.push(out);
            }
            return Ok(());
        }
        EntryKind::Symlink { target } => {
            header.kind = EntryType::Symlink;
            header.link.clone_from(target);
        }
        EntryKind::Hardlink { target } => {
            header.kind = EntryType::Link;
            header.link.clone_from(target);
        }
        EntryKind::CharDev { major, minor } => {
            header.kind = EntryType::Char;
            header.device = (u64::from(*major), u64::from(*minor));
        }
        EntryKind::BlockDev { major, minor } => {
            header.kind = EntryType::Block;
            header.device = (u64::from(*major), u64::from(*minor));
        }
        EntryKind::Fifo => header.kind = EntryType::Fifo,
        EntryKind::Whiteout => {
            let (dir, name) = split(&entry.path);
            let name = [WHITEOUT, name].concat();
            Fields { name: super::join(dir, &name), ..Fields::default() }.push(out);
            return Ok(());
        }
    }
    header.describe(entry)?;
    header.push(out);
    Ok(())
}

/// The two empty blocks that end an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// How many zero bytes follow `size` bytes of data.
pub(crate) const fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// One header before it is known whether it fits.
struct Fields {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: EntryType,
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: i64,
    device: (u64, u64),
    /// Where the first header begins, if the data are to be aligned.
    align: Option<u64>,
    /// PAX records; sorted, as Go's writer has them.
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            name: Vec::new(),
            link: Vec::new(),
            kind: EntryType::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: (0, 0),
            align: None,
            records: BTreeMap::new(),
        }
    }
}

impl Fields {
    /// Takes over owner, time and attributes.
    fn describe(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let unrepresentable = |reason| LayerError::Unrepresentable { path: show(&entry.path), reason };
        if self.device.0 > MAX_SHORT || self.device.1 > MAX_SHORT {
            return Err(unrepresentable("its device number is too large for a tar header"));
        }
        self.uid = entry.uid.into();
        self.gid = entry.gid.into();
        self.mtime = entry.mtime.0;
        if matches!(entry.kind, EntryKind::Hardlink { .. }) {
            // The attributes are the file's, which has them in its own header.
            return Ok(());
        }
        for (name, value) in &entry.xattrs {
            if name.contains(&b'=') {
                return Err(unrepresentable("an extended attribute has a name with \"=\" in it"));
            }
            self.records.insert([XATTR, name].concat(), value.clone());
        }
        Ok(())
    }

    /// Appends the PAX header, if one is needed, and the header itself.
    fn push(mut self, out: &mut Vec<u8>) {
        if self.name.len() > 100 || !self.name.is_ascii() {
            self.records.insert(b"path".to_vec(), self.name.clone());
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            self.records.insert(b"linkpath".to_vec(), self.link.clone());
        }
        for (key, value, max) in
            [("uid", self.uid, MAX_SHORT), ("gid", self.gid, MAX_SHORT), ("size", self.size, MAX_LONG)]
        {
            if value > max {
                self.records.insert(key.into(), value.to_string().into());
            }
        }
        if u64::try_from(self.mtime).is_ok_and(|mtime| mtime <= MAX_LONG) {
            // In the header.
        } else {
            self.records.insert(b"mtime".to_vec(), self.mtime.to_string().into());
        }
        let mut records = Vec::new();
        for (key, value) in &self.records {
            push_record(&mut records, key, value);
        }
        if let Some(at) = self.align {
            align(&mut records, at);
        }
        if !records.is_empty() {
            self.push_records(&records, out);
        }

        let mut block = Header::new_ustar();
        set_name(&mut block, &self.name);
        set_bytes(&mut block.as_old_mut().linkname, &ascii(&self.link));
        block.set_entry_type(self.kind);
        let old = block.as_old_mut();
        octal(&mut old.mode, self.mode);
        octal(&mut old.uid, self.uid);
        octal(&mut old.gid, self.gid);
        octal(&mut old.size, self.size);
        octal(&mut old.mtime, u64::try_from(self.mtime).unwrap_or(0));
        if let Some(ustar) = block.as_ustar_mut() {
            octal(&mut ustar.dev_major, self.device.0);
            octal(&mut ustar.dev_minor, self.device.1);
        }
        block.set_cksum();
        out.extend_from_slice(block.as_bytes());
    }

    fn push_records(&self, data: &[u8], out: &mut Vec<u8>) {
        let mut block = Header::new_ustar();
        let (dir, name) = split(&self.name);
        let mut alias = ascii(&super::join(&super::join(dir, b"PaxHeaders.0"), name));
        alias.truncate(100);
        while alias.last() == Some(&b'/') {
            alias.pop();
        }
        set_name(&mut block, &alias);
        block.set_entry_type(EntryType::XHeader);
        let old = block.as_old_mut();
        octal(&mut old.mode, 0);
        octal(&mut old.uid, 0);
        octal(&mut old.gid, 0);
        octal(&mut old.size, data.len() as u64);
        octal(&mut old.mtime, 0);
        block.set_cksum();
        out.extend_from_slice(block.as_bytes());
        let padding = padding(data.len() as u64);
        out.extend_from_slice(data);
        out.extend_from_slice(&[0; BLOCK][..padding]);
    }
}

/// Adds a comment to the PAX records of a header that begins at `at`, so long that the data behind it are aligned.
fn align(records: &mut Vec<u8>, at: u64) {
    const EMPTY: usize = b"12 comment=\n".len();
    let behind = |blocks: usize| at + (blocks * BLOCK) as u64;
    let used = records.len().div_ceil(BLOCK);
    // The header itself, and what is in front of it if there are records.
    let before = 1 + usize::from(used > 0) + used;
    if behind(before) % ALIGNMENT == 0 {
        return;
    }
    let mut blocks = (records.len() + EMPTY).div_ceil(BLOCK);
    while behind(2 + blocks) % ALIGNMENT != 0 {
        blocks += 1;
    }
    let length = blocks * BLOCK - records.len();
    // One byte less where its own length would take another digit; the block is filled up with zeros then.
    let value = length - length.to_string().len() - b" comment=\n".len();
    push_record(records, b"comment", &vec![b' '; value]);
}

/// A record is its own length in decimal, a blank, key, `=`, value and a newline; the length counts itself.
pub(crate) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// What of `text` a plain header can hold; the rest is in a PAX record.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// Sets the name, cut to its field. A cut that happens to end in a slash would make a file look like a directory to
/// readers that judge by the plain header.
fn set_name(block: &mut Header, name: &[u8]) {
    let name = ascii(name);
    let field = &mut block.as_old_mut().name;
    set_bytes(field, &name);
    if name.len() > field.len() {
        let kept = field.iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1);
        field[kept..].fill(0);
    }
}

fn set_bytes(field: &mut [u8], bytes: &[u8]) {
    let length = field.len().min(bytes.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Fills a field with octal digits and a final NUL; zero if the number is too large, which a PAX record then holds.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = if value >> (3 * digits) == 0 { value } else { 0 };
    for (at, byte) in field[..digits].iter_mut().enumerate() {
        *byte = b'0' + ((value >> (3 * (digits - 1 - at))) & 7) as u8;
    }
    field[digits] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::TarReader;

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, want) in [("1", "6 a=1\n"), ("123", "8 a=123\n"), ("1234", "9 a=1234\n"), ("12345", "11 a=12345\n")]
        {
            let mut out = Vec::new();
            push_record(&mut out, b"a", value.as_bytes());
            assert_eq!(out, want.as_bytes());
            assert_eq!(out.len().to_string(), want.split(' ').next().unwrap_or_default());
        }
    }

    #[test]
    fn the_data_of_large_files_are_aligned_whatever_stands_in_front() {
        for at in (0..2 * ALIGNMENT).step_by(BLOCK) {
            for length in (0..1200).chain([4000, 5000]) {
                let mut entry = Entry::file("f", LARGE, 0o644);
                if length > 0 {
                    entry.xattrs.push((b"user.x".to_vec(), vec![b'x'; length]));
                }
                let (mut plain, mut aligned) = (Vec::new(), Vec::new());
                push_header(&mut plain, &entry, None).unwrap();
                push_header(&mut aligned, &entry, Some(at)).unwrap();
                assert_eq!((at + aligned.len() as u64) % ALIGNMENT, 0, "{at} {length}");
                assert!(aligned.len() <= plain.len() + ALIGNMENT as usize + BLOCK, "{at} {length}");
                let member = |bytes: &[u8]| TarReader::new(bytes).next_member().unwrap().unwrap();
                let (plain, aligned) = (member(&plain), member(&aligned));
                assert_eq!((plain.name, plain.xattrs), (aligned.name, aligned.xattrs));
            }
        }
        let small = Entry::file("f", LARGE - 1, 0o644);
        let mut bytes = Vec::new();
        push_header(&mut bytes, &small, Some(0)).unwrap();
        assert_eq!(bytes.len(), BLOCK);
    }

    #[test]
    fn numbers_that_do_not_fit_leave_zeros() {
        let mut field = [1; 8];
        octal(&mut field, 0o755);
        assert_eq!(&field, b"0000755\0");
        octal(&mut field, MAX_SHORT + 1);
        assert_eq!(&field, b"0000000\0");
    }
}
