//! From the bytes of a picture to the bytes of its thumbnail. Nothing here knows that it runs in WebAssembly.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

/// The widest and highest picture that is decoded.
const SIDE_PIXELS_MAX: u32 = 10_000;
/// The most memory that a decoded picture may take. A few kilobytes of PNG can claim gigabytes of pixels: what a picture claims is
/// checked before any of it is decoded.
const DECODED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why there is no thumbnail.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// The bytes are no PNG or JPEG.
    NotAPicture,
    /// They begin like one, and can't be decoded.
    Broken(String),
    /// The picture is larger than what is decoded.
    TooLarge(String),
}

/// A PNG of the picture, at most `width` pixels wide, in the picture's proportions. A picture that is narrower keeps its size.
pub fn thumbnail(bytes: &[u8], width: u32) -> Result<Vec<u8>, Refusal> {
    let picture = decode(bytes)?;
    // The height follows from the width; one pixel is left of a picture that is much wider than high.
    let small = if picture.width() > width {
        let height = u64::from(picture.height()) * u64::from(width) / u64::from(picture.width());
        picture.thumbnail_exact(width, u32::try_from(height).unwrap_or(u32::MAX).max(1))
    } else {
        picture
    };
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png).map_err(|e| Refusal::Broken(e.to_string()))?;
    Ok(png.into_inner())
}

fn decode(bytes: &[u8]) -> Result<DynamicImage, Refusal> {
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        _ => return Err(Refusal::NotAPicture),
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_PIXELS_MAX);
    limits.max_image_height = Some(SIDE_PIXELS_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);

    let mut decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > DECODED_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("a picture of {width} by {height} pixels is too large")));
    }
    // Cameras store a picture as the sensor saw it, and beside it how it was held.
    let orientation = decoder.orientation().map_err(refusal)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn refusal(error: ImageError) -> Refusal {
    match error {
        ImageError::Limits(e) => Refusal::TooLarge(format!(
            "the picture is too large, at most {SIDE_PIXELS_MAX} pixels a side and {} MiB decoded are taken: {e}",
            DECODED_BYTES_MAX / (1024 * 1024)
        )),
        other => Refusal::Broken(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = include_bytes!("../picture.png");

    fn size(png: &[u8]) -> (u32, u32) {
        let picture = image::load_from_memory(png).expect("a PNG");
        (picture.width(), picture.height())
    }

    #[test]
    fn proportions_are_kept_and_nothing_grows() {
        assert_eq!(size(&thumbnail(SAMPLE, 128).expect("a thumbnail")), (128, 80));
        assert_eq!(size(&thumbnail(SAMPLE, 1).expect("a thumbnail")), (1, 1));
        assert_eq!(size(&thumbnail(SAMPLE, 1024).expect("a thumbnail")), (480, 300));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        assert_eq!(thumbnail(b"GIF89a and so on", 128), Err(Refusal::NotAPicture));
        assert_eq!(thumbnail(b"", 128), Err(Refusal::NotAPicture));
        assert!(matches!(thumbnail(&SAMPLE[..200], 128), Err(Refusal::Broken(_))));
    }

    #[test]
    fn a_picture_that_claims_too_much_is_refused_before_it_is_decoded() {
        // The sample's header with other sizes, and the checksum that belongs to it.
        for side in [50_000_u32, 9_000] {
            let mut bomb = SAMPLE.to_vec();
            bomb[16..20].copy_from_slice(&side.to_be_bytes());
            bomb[20..24].copy_from_slice(&side.to_be_bytes());
            let checksum = crc32(&bomb[12..29]);
            bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
            assert!(matches!(thumbnail(&bomb, 128), Err(Refusal::TooLarge(_))), "{side}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }
}
