//! Named images.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use graph::Digest;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::db::{column_digest, column_optional_digest};
use crate::{Store, StoreError};

/// Why an image is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A person named it, by building, tagging, pulling or loading.
    Tagged,
    /// A build needed it.
    Base,
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// In full, with tag or digest: `docker.io/library/debian:bookworm-slim`.
    pub name: String,
    /// Digest of the config, which is the image's id.
    pub config: Digest,
    /// The manifest, if one was pulled, exported or pushed.
    pub manifest: Option<ManifestRef>,
    /// Why it is there.
    pub kind: ImageKind,
}

/// A manifest among the blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRef {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
}

/// Begins the name of an image that nobody has named, or whose name went to another; its id follows.
pub(crate) const UNNAMED: &str = "<none>@";

impl ImageRecord {
    /// An image without a name, which is kept until somebody removes it.
    #[must_use]
    pub fn unnamed(config: Digest, manifest: Option<ManifestRef>) -> Self {
        Self { name: format!("{UNNAMED}{config}"), config, manifest, kind: ImageKind::Tagged }
    }

    /// Whether it has no name.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        self.name.starts_with(UNNAMED)
    }
}

const COLUMNS: &str = "name, config, manifest, manifest_type, manifest_size, tagged";

impl Store {
    /// The image of this full name.
    ///
    /// # Errors
    /// The database.
    pub fn image(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images WHERE name = ?1");
        self.db.read_guarded(|db| {
            let image = db.prepare_cached(&sql)?.query_row([name], read).optional()?;
            if let Some(image) = &image {
                self.hold_image(image);
                self.found_images.lock().unwrap_or_else(PoisonError::into_inner).insert(image.name.clone());
            }
            Ok(image)
        })
    }

    /// All images, by name.
    ///
    /// # Errors
    /// The database.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM images ORDER BY name");
        self.db.read(|db| db.prepare_cached(&sql)?.query_map([], read)?.collect())
    }

    /// Names an image, replacing what had the name. A name that a person gave stays one.
    ///
    /// An image that thereby loses its last name stays without one; one that gets a name is no longer without.
    ///
    /// Until [`Store::make_durable`], what had the name before is kept too: should the machine die and take the new image
    /// with it, the name falls back.
    ///
    /// # Errors
    /// The database.
    pub fn put_image(&self, image: &ImageRecord) -> Result<(), StoreError> {
        let manifest = image.manifest.as_ref();
        self.db.write(|db| {
            self.hold_image(image);
            let sql = format!("SELECT {COLUMNS}, previous FROM images WHERE name = ?1");
            let old = db
                .prepare_cached(&sql)?
                .query_row([&image.name], |row| Ok((read(row)?, row.get::<_, Option<String>>(6)?)))
                .optional()?;
            if let Some((old, _)) = &old
                && old.config != image.config
                && old.kind == ImageKind::Tagged
            {
                keep_unnamed(db, old)?;
            }
            if !image.is_unnamed() {
                let unnamed = ImageRecord::unnamed(image.config, None).name;
                db.prepare_cached("DELETE FROM images WHERE name = ?1")?.execute([unnamed])?;
            } else if has_name(db, &image.config, &image.name)? {
                return Ok(0);
            }
            if old.as_ref().is_none_or(|(old, _)| old != image) {
                self.named.store(true, Ordering::Relaxed);
            }
            let previous = match old {
                None => None,
                Some((_, Some(previous))) => Some(previous),
                Some((old, None)) if old == *image => None,
                Some((old, None)) => Some(Previous::of(&old).encode()),
            };
            db.prepare_cached(
                "INSERT INTO images (name, config, manifest, manifest_type, manifest_size, tagged, previous, used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (name) DO UPDATE SET config = ?2, manifest = ?3, manifest_type = ?4, manifest_size = ?5,
                     tagged = max(tagged, ?6), previous = ?7, used = ?8",
            )?
            .execute(params![
                image.name,
                image.config.as_bytes(),
                manifest.map(|manifest| manifest.digest.as_bytes()),
                manifest.map(|manifest| &manifest.media_type),
                manifest.map(|manifest| manifest.size as i64),
                image.kind == ImageKind::Tagged,
                previous,
                jiff::Timestamp::now().as_millisecond(),
            ])
        })?;
        Ok(())
    }

    fn hold_image(&self, image: &ImageRecord) {
        self.lease.hold(&image.config);
        if let Some(manifest) = &image.manifest {
            self.lease.hold(&manifest.digest);
        }
    }

    /// Takes a name away; whether it was there. The bytes go with the next [`Store::collect`].
    ///
    /// # Errors
    /// The database.
    pub fn remove_image(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.db.write(|db| db.execute("DELETE FROM images WHERE name = ?1", [name]))? > 0)
    }
}

/// Whether an image has a name other than `but`.
fn has_name(db: &Connection, config: &Digest, but: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM images WHERE config = ?1 AND tagged AND name <> ?2";
    db.prepare_cached(sql)?.exists(params![config.as_bytes(), but])
}

/// Keeps an image that is about to lose a name, if it is the last.
fn keep_unnamed(db: &Connection, image: &ImageRecord) -> rusqlite::Result<()> {
    if has_name(db, &image.config, &image.name)? {
        return Ok(());
    }
    let manifest = image.manifest.as_ref();
    db.prepare_cached(
        "INSERT OR IGNORE INTO images (name, config, manifest, manifest_type, manifest_size, tagged, used)
         VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6)",
    )?
    .execute(params![
        ImageRecord::unnamed(image.config, None).name,
        image.config.as_bytes(),
        manifest.map(|manifest| manifest.digest.as_bytes()),
        manifest.map(|manifest| &manifest.media_type),
        manifest.map(|manifest| manifest.size as i64),
        jiff::Timestamp::now().as_millisecond(),
    ])?;
    Ok(())
}

/// What a name stood for before, as text in its row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Previous {
    pub(crate) config: Digest,
    pub(crate) manifest: Option<(Digest, String, u64)>,
    tagged: bool,
}

impl Previous {
    fn of(image: &ImageRecord) -> Self {
        let manifest = image.manifest.clone().map(|manifest| (manifest.digest, manifest.media_type, manifest.size));
        Self { config: image.config, manifest, tagged: image.kind == ImageKind::Tagged }
    }

    fn encode(&self) -> String {
        serde_json::to_string(self).expect("digests, strings and numbers have a JSON form")
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Gives the name back to it.
    pub(crate) fn restore(&self, db: &Connection, name: &str) -> rusqlite::Result<()> {
        let manifest = self.manifest.as_ref();
        db.execute(
            "UPDATE images SET config = ?2, manifest = ?3, manifest_type = ?4, manifest_size = ?5, tagged = ?6,
                 previous = NULL WHERE name = ?1",
            params![
                name,
                self.config.as_bytes(),
                manifest.map(|(digest, _, _)| digest.as_bytes()),
                manifest.map(|(_, media_type, _)| media_type),
                manifest.map(|(_, _, size)| *size as i64),
                self.tagged
            ],
        )?;
        Ok(())
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<ImageRecord> {
    let manifest = match column_optional_digest(row, 2)? {
        None => None,
        Some(digest) => Some(ManifestRef { digest, media_type: row.get(3)?, size: row.get::<_, i64>(4)? as u64 }),
    };
    let kind = if row.get(5)? { ImageKind::Tagged } else { ImageKind::Base };
    Ok(ImageRecord { name: row.get(0)?, config: column_digest(row, 1)?, manifest, kind })
}
