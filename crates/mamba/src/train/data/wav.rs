//! Sound: WAV files as mu-law, 8 bits a sample, the tokens of the paper's audio models.

use std::path::Path;

use crate::error::{Error, Result};

/// Ids of mu-law samples.
pub const VOCABULARY: usize = 256;

/// Reads a WAV file (integers of 8 to 32 bits or floats; channels are averaged) and hands on its samples, mu-law
/// encoded, piece by piece. The rate stays what it is.
///
/// # Errors
/// `FILE_NOT_FOUND`, `DATA_INVALID`, and what `take` gives.
pub fn read(path: &Path, take: &mut dyn FnMut(&[u32]) -> Result<()>) -> Result<()> {
    const PIECE: usize = 1 << 16;
    let invalid = |error: hound::Error| match error {
        hound::Error::IoError(source) if source.kind() == std::io::ErrorKind::NotFound => {
            Error::io("read", path, source)
        }
        other => Error::DataInvalid { path: path.into(), reason: other.to_string() },
    };
    let mut reader = hound::WavReader::open(path).map_err(invalid)?;
    let spec = reader.spec();
    let channels = usize::from(spec.channels.max(1));
    let expected = u64::from(reader.duration());
    let (mut frame, mut ids, mut frames) = (Vec::with_capacity(channels), Vec::with_capacity(PIECE), 0u64);
    let mut sample = |value: f32| -> Result<()> {
        frame.push(value);
        if frame.len() == channels {
            ids.push(mu_law(frame.iter().sum::<f32>() / channels as f32));
            frame.clear();
            frames += 1;
            if ids.len() == PIECE {
                take(&ids)?;
                ids.clear();
            }
        }
        Ok(())
    };
    match spec.sample_format {
        hound::SampleFormat::Float => {
            for value in reader.samples::<f32>() {
                sample(value.map_err(invalid)?)?;
            }
        }
        hound::SampleFormat::Int => {
            let full = 2f32.powi(i32::from(spec.bits_per_sample) - 1);
            for value in reader.samples::<i32>() {
                sample(value.map_err(invalid)? as f32 / full)?;
            }
        }
    }
    if frames < expected {
        let reason = format!("cut short: {frames} samples, its header says {expected}");
        return Err(Error::DataInvalid { path: path.into(), reason });
    }
    take(&ids)
}

/// F(x) = sgn(x) · ln(1 + 255·|x|) / ln 256, its range −1 … 1 laid over 0 … 255 (as in WaveNet and torchaudio).
fn mu_law(x: f32) -> u32 {
    let x = if x.is_finite() { x.clamp(-1.0, 1.0) } else { 0.0 };
    let compressed = x.signum() * (255.0 * x.abs()).ln_1p() / 256f32.ln();
    ((compressed + 1.0) / 2.0 * 255.0 + 0.5) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(spec: hound::WavSpec, samples: &[i32]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        let mut writer = hound::WavWriter::create(&path, spec).unwrap();
        samples.iter().for_each(|sample| writer.write_sample(*sample).unwrap());
        writer.finalize().unwrap();
        (folder, path)
    }

    fn ids(path: &Path) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        read(path, &mut |ids| {
            all.extend_from_slice(ids);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn samples_become_mu_law_ids() {
        // torchaudio.functional.mu_law_encoding's formula in Python:
        // int((sgn(x) * log1p(255 * abs(x)) / log1p(255) + 1) / 2 * 255 + 0.5) for x = sample / 32768
        let samples = [0, 1, -1, 100, -100, 5000, -5000, 16384, -16384, 32767, -32768];
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let (_folder, path) = written(spec, &samples);
        assert_eq!(ids(&path).unwrap(), [128, 128, 127, 141, 114, 212, 43, 239, 16, 255, 0]);
        // Two channels are averaged.
        let (_folder, path) = written(hound::WavSpec { channels: 2, ..spec }, &[100, -100, 5000, 5000]);
        assert_eq!(ids(&path).unwrap(), [128, 212]);
    }

    #[test]
    fn bad_files_are_refused() {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 8000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let (_folder, path) = written(spec, &[1; 1000]);
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 10, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(ids(&path).unwrap_err().code(), "DATA_INVALID", "{len}");
        }
        assert_eq!(ids(Path::new("none.wav")).unwrap_err().code(), "FILE_NOT_FOUND");
    }
}
