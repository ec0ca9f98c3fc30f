//! Limits on sizes that files announce. Each is checked before memory is taken.

/// Pixels of one image.
pub(crate) const IMAGE_PIXELS: u64 = 100_000_000;
/// Pixels along one side of an image: what JPEG can state. A thinner picture would take memory in other ways.
pub(crate) const IMAGE_SIDE: u64 = 65_535;
/// Bytes of one encoded image, as a file or as an entry of an archive.
pub(crate) const ENCODED_BYTES: u64 = 256 << 20;
/// Bytes of an unpacked IDX file (the largest common one, EMNIST, has 550 MB).
pub(crate) const IDX_BYTES: u64 = 4 << 30;
/// Bytes of a WebDataset `.cls` entry: a number or a short name.
pub(crate) const CLASS_BYTES: u64 = 256;
/// Archives kept open; the rest are opened for each read, to stay below the usual limit of 1024 open files.
pub(crate) const OPEN_ARCHIVES: usize = 256;

/// Refuses `found` above `limit`.
pub(crate) fn at_most(name: &str, what: &'static str, found: u64, limit: u64) -> crate::Result<()> {
    if found <= limit {
        return Ok(());
    }
    Err(crate::Error::TooLarge { name: name.to_owned(), what, found, limit })
}

/// Refuses a picture that is too long or holds too many pixels.
pub(crate) fn picture(name: &str, width: u64, height: u64) -> crate::Result<()> {
    at_most(name, "pixels", width.saturating_mul(height), IMAGE_PIXELS)?;
    at_most(name, "side in pixels", width.max(height), IMAGE_SIDE)
}
