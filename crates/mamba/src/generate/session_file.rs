//! The session format `node-mamba-session/1`: all that a sequence needs to go on, in one piece of bytes.
//!
//! | bytes | what |
//! |---|---|
//! | 21 | `node-mamba-session/1\n` |
//! | 4 | length of the header, u32 little endian |
//! | that many | the header, JSON ([`SessionSnapshot`]'s fields but the state; the fingerprint in hexadecimal) |
//! | 4 × elements | the state, f32 little endian, in the order of the spec |
//! | 32 | SHA-256 of all bytes before |
//!
//! The header is padded with blanks, so that the size depends on the model (and on a penalty window above 256), not on
//! how long the context is.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::write_atomically;
use crate::error::{Error, Result};
use crate::model::StateSpec;

const FORMAT: &str = "node-mamba-session/1";
const NAME: &[u8] = b"node-mamba-session/";
const CHECKSUM: usize = 32;
/// The spec of 10,000 layers and the largest penalty window fit.
const MAX_HEADER: usize = 4 << 20;
/// Of a file, before it is read: some hundred times the state of the largest published Mamba.
const MAX_FILE: u64 = 4 << 30;

/// A sequence as it stands between two tokens. Cheap to clone: clones share the state.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSnapshot {
    /// The tensors that the state consists of.
    pub spec: StateSpec,
    /// The state, `spec.elements()` long.
    pub state: Arc<[f32]>,
    /// Length of the context, the pending token included; also the position of the next draw.
    pub tokens: u64,
    /// The context's last token, if the state has not consumed it yet.
    pub pending: Option<u32>,
    /// The draws' key.
    pub seed: u64,
    /// The last tokens of the context, the pending one included, oldest first: at least `penaltyWindow` of them
    /// for the penalties, of which the newest few tell the detokenizer about an unfinished character.
    pub window: Vec<u32>,
    /// Of the model that it belongs to.
    pub fingerprint: [u8; 32],
    /// Type of that model's weights: `f32`, `bf16`, `f16`. Another may restore the session.
    pub dtype: String,
    /// Where that model ran. Another device may restore the session.
    pub device: String,
}

/// The JSON part.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    spec: StateSpec,
    tokens: u64,
    pending: Option<u32>,
    seed: u64,
    window: Vec<u32>,
    fingerprint: String,
    dtype: String,
    device: String,
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::SessionInvalid { reason: reason.into() }
}

impl SessionSnapshot {
    /// The header, padded with blanks to a length that the numbers in it do not change.
    fn header(&self) -> Vec<u8> {
        let json = |tokens, pending, seed, window: &[u32]| {
            let header = Header {
                spec: self.spec.clone(),
                tokens,
                pending,
                seed,
                window: window.to_vec(),
                fingerprint: hex(&self.fingerprint),
                dtype: self.dtype.clone(),
                device: self.device.clone(),
            };
            serde_json::to_vec(&header).expect("numbers and strings can always be written as JSON")
        };
        let bare = json(0, None, 0, &[]).len();
        // 20 digits for each u64; 10 digits and a comma for each id, of 256 at least.
        let numbers = 2 * 20 + 11 * (1 + self.window.len().max(256));
        let mut header = json(self.tokens, self.pending, self.seed, &self.window);
        header.resize(bare + numbers, b' ');
        header
    }

    /// Length of [`to_bytes`](Self::to_bytes): the same for any context of a model whose penalty window is at
    /// most 256.
    #[must_use]
    pub fn byte_length(&self) -> usize {
        FORMAT.len() + 1 + 4 + self.header().len() + size_of_val(&*self.state) + CHECKSUM
    }

    /// The session as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = self.header();
        let mut bytes = Vec::with_capacity(self.byte_length());
        bytes.extend_from_slice(FORMAT.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend(self.state.iter().flat_map(|x| x.to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// The session of [`to_bytes`](Self::to_bytes)' result.
    ///
    /// # Errors
    /// `SESSION_VERSION` for another version of the format, `SESSION_INVALID` for anything else that is not
    /// exactly what `to_bytes` gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let rest = after_format(bytes)?;
        let short = || invalid(format!("it ends after {} bytes", bytes.len()));
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_HEADER {
            return Err(invalid(format!("its header claims {length} bytes, expected at most {MAX_HEADER}")));
        }
        let (header, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        let (state, checksum) = rest.split_last_chunk::<CHECKSUM>().ok_or_else(short)?;
        let before = bytes.len() - CHECKSUM;
        if Sha256::digest(&bytes[..before])[..] != checksum[..] {
            return Err(invalid("its checksum is wrong: it was damaged or cut off"));
        }
        let header: Header =
            serde_json::from_slice(header).map_err(|error| invalid(format!("its header: {error}")))?;
        let expected = state_bytes(&header.spec).filter(|expected| *expected == state.len());
        if expected.is_none() {
            return Err(invalid(format!("its state has {} bytes, which its spec denies", state.len())));
        }
        let fingerprint = unhex(&header.fingerprint)
            .ok_or_else(|| invalid("its fingerprint is not 64 hexadecimal digits"))?;
        let (values, _) = state.as_chunks::<4>();
        Ok(Self {
            spec: header.spec,
            state: values.iter().map(|x| f32::from_le_bytes(*x)).collect(),
            tokens: header.tokens,
            pending: header.pending,
            seed: header.seed,
            window: header.window,
            fingerprint,
            dtype: header.dtype,
            device: header.device,
        })
    }

    /// Writes [`to_bytes`](Self::to_bytes)' result to a file, which is replaced as a whole or not at all.
    ///
    /// # Errors
    /// `DISK_FULL`, `IO_ERROR`, `FILE_NOT_FOUND` (the folder).
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes();
        write_atomically(path, |out| out.write_all(&bytes))
    }

    /// The session in a file.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`, `IO_ERROR`, and those of [`from_bytes`](Self::from_bytes).
    pub fn load(path: &Path) -> Result<Self> {
        let read_error = |source| Error::io("read", path, source);
        // Before it is opened: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(read_error)?;
        if !metadata.is_file() {
            return Err(invalid(format!("{} is not a file", path.display())));
        }
        if metadata.len() > MAX_FILE {
            return Err(invalid(format!("{} has {} bytes", path.display(), metadata.len())));
        }
        // Whatever else a large file may be, it is not read whole to find out.
        let mut file = File::open(path).map_err(read_error)?;
        let mut bytes = Vec::new();
        file.by_ref().take(64).read_to_end(&mut bytes).map_err(read_error)?;
        after_format(&bytes)?;
        bytes.try_reserve_exact(metadata.len() as usize).map_err(|_| Error::OutOfMemory {
            bytes: metadata.len(),
            what: "a session file".into(),
            free: None,
        })?;
        file.take(metadata.len()).read_to_end(&mut bytes).map_err(read_error)?;
        Self::from_bytes(&bytes)
    }

    /// Checks that a model with this spec and fingerprint can go on with the session.
    ///
    /// # Errors
    /// `SESSION_MISMATCH`, naming the first difference.
    pub fn check_model(&self, spec: &StateSpec, fingerprint: &[u8; 32]) -> Result<()> {
        let mismatch = |what: String, found: String, expected: String| {
            Err(Error::SessionMismatch { what, found, expected })
        };
        for (found, expected) in self.spec.entries.iter().zip(&spec.entries) {
            if (&found.name, found.layer) != (&expected.name, expected.layer) {
                let describe = |name: &str, layer| format!("{name} of layer {layer}");
                return mismatch(
                    "a state tensor".into(),
                    describe(&found.name, found.layer),
                    describe(&expected.name, expected.layer),
                );
            }
            if found.shape != expected.shape {
                return mismatch(
                    format!("the shape of layer {}'s {}", found.layer, found.name),
                    format!("{:?}", found.shape),
                    format!("{:?}", expected.shape),
                );
            }
        }
        let (found, expected) = (self.spec.entries.len(), spec.entries.len());
        if found != expected {
            return mismatch("the number of state tensors".into(), found.to_string(), expected.to_string());
        }
        if self.fingerprint != *fingerprint {
            return mismatch("the fingerprint".into(), hex(&self.fingerprint), hex(fingerprint));
        }
        Ok(())
    }
}

/// What follows the format's line.
fn after_format(bytes: &[u8]) -> Result<&[u8]> {
    let Some(version) = bytes.strip_prefix(NAME) else {
        return Err(invalid(format!("it does not begin with `{FORMAT}`")));
    };
    let Some(end) = version.iter().take(12).position(|byte| *byte == b'\n') else {
        return Err(invalid("its format has no version"));
    };
    let (version, rest) = (&version[..end], &version[end + 1..]);
    if version != b"1" {
        let found = format!("node-mamba-session/{}", String::from_utf8_lossy(version));
        return Err(Error::SessionVersion { found, expected: FORMAT.into() });
    }
    Ok(rest)
}

/// Bytes of a state; None if that is more than can be counted.
fn state_bytes(spec: &StateSpec) -> Option<usize> {
    spec.entries.iter().try_fold(0usize, |sum, entry| {
        let bytes = entry.shape.iter().try_fold(size_of::<f32>(), |product, n| product.checked_mul(*n))?;
        sum.checked_add(bytes)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !odd.is_empty() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StateEntry;

    fn spec(d_inner: usize) -> StateSpec {
        let entry =
            |name: &str, layer, rows| StateEntry { name: name.into(), layer, shape: vec![rows, d_inner] };
        let layers = 0..3;
        StateSpec {
            entries: layers.flat_map(|i| [entry("conv_state", i, 3), entry("ssm_state", i, 4)]).collect(),
        }
    }

    fn snapshot() -> SessionSnapshot {
        let spec = spec(5);
        // Among ordinary values those whose bits are easily lost.
        let odd = [f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 3.0, 1.0 + f32::EPSILON];
        let state = (0..spec.elements()).map(|i| odd.get(i).copied().unwrap_or(i as f32 / 7.0)).collect();
        SessionSnapshot {
            spec,
            state,
            tokens: 1_000_000_000_000,
            pending: Some(77),
            seed: u64::MAX,
            window: (1000..1256).collect(),
            fingerprint: std::array::from_fn(|i| i as u8 * 7),
            dtype: "bf16".into(),
            device: "cpu".into(),
        }
    }

    fn same(a: &SessionSnapshot, b: &SessionSnapshot) -> bool {
        let bits = |s: &SessionSnapshot| s.state.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let without = |s: &SessionSnapshot| SessionSnapshot { state: Arc::default(), ..s.clone() };
        bits(a) == bits(b) && without(a) == without(b)
    }

    /// A file with a right checksum around any contents.
    fn sealed(header: &str, state: &[u8]) -> Vec<u8> {
        let mut bytes = b"node-mamba-session/1\n".to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(state);
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }

    fn header_with(shape: &str, fingerprint: &str) -> String {
        format!(
            r#"{{"spec":{{"entries":[{{"name":"x","layer":0,"shape":{shape}}}]}},"tokens":1,"pending":null,"seed":0,"window":[],"fingerprint":"{fingerprint}","dtype":"f32","device":"cpu"}}"#
        )
    }

    #[test]
    fn there_and_back_to_the_bit() {
        let before = snapshot();
        assert!(same(&before, &SessionSnapshot::from_bytes(&before.to_bytes()).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.session");
        before.save(&path).unwrap();
        assert!(same(&before, &SessionSnapshot::load(&path).unwrap()));
        let nothing = SessionSnapshot { pending: None, window: vec![], tokens: 0, ..before };
        assert!(same(&nothing, &SessionSnapshot::from_bytes(&nothing.to_bytes()).unwrap()));
    }

    /// The format must not change unseen: a file written by hand is read as documented.
    #[test]
    fn the_format_is_the_documented_one() {
        let header = header_with("[2]", &"0f".repeat(32));
        let mut state = 1.5f32.to_le_bytes().to_vec();
        state.extend((-2f32).to_le_bytes());
        let bytes = sealed(&header, &state);
        let session = SessionSnapshot::from_bytes(&bytes).unwrap();
        assert_eq!(
            (&session.state[..], session.tokens, session.fingerprint),
            (&[1.5, -2.0][..], 1, [15; 32])
        );
        // Written, it is padded with blanks to the length that the largest numbers would need.
        let padded = format!("{header}{}", " ".repeat(2 * 20 + 11 * 257));
        assert_eq!(session.to_bytes().len(), sealed(&padded, &state).len());
        assert!(session.to_bytes() == sealed(&padded, &state), "not the documented bytes");
    }

    #[test]
    fn size_does_not_depend_on_the_contexts_length() {
        let long = snapshot().to_bytes().len();
        let first =
            SessionSnapshot { tokens: 1, seed: u64::MAX, window: vec![], pending: None, ..snapshot() };
        assert_eq!(first.to_bytes().len(), long);
        assert_eq!(first.byte_length(), long);
        let full = SessionSnapshot { tokens: u64::MAX, window: vec![u32::MAX; 256], ..snapshot() };
        assert_eq!(full.to_bytes().len(), long);
    }

    #[test]
    fn clones_share_the_state() {
        let session = snapshot();
        assert!(Arc::ptr_eq(&session.state, &session.clone().state));
    }

    #[test]
    fn cut_anywhere_or_followed_by_anything_it_is_refused() {
        let bytes = snapshot().to_bytes();
        for end in 0..bytes.len() {
            assert_eq!(SessionSnapshot::from_bytes(&bytes[..end]).unwrap_err().code(), "SESSION_INVALID");
        }
        for more in [1, 4, 1000] {
            let longer = [bytes.clone(), vec![0; more]].concat();
            assert_eq!(SessionSnapshot::from_bytes(&longer).unwrap_err().code(), "SESSION_INVALID");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = snapshot().to_bytes();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let code = SessionSnapshot::from_bytes(&damaged).unwrap_err().code();
                // The version's one byte may become another version.
                assert!(code == "SESSION_INVALID" || at == 19 && code == "SESSION_VERSION", "byte {at}");
            }
        }
    }

    #[test]
    fn other_versions_are_named() {
        let error = SessionSnapshot::from_bytes(b"node-mamba-session/2\nanything").unwrap_err();
        assert_eq!(error.code(), "SESSION_VERSION");
        assert!(error.to_string().contains("node-mamba-session/2"), "{error}");
    }

    #[test]
    fn hostile_contents_with_a_right_checksum_are_refused() {
        let print = "00".repeat(32);
        for shape in
            ["[1]", "[3]", "[2,2]", "[4611686018427387904,4]", "[18446744073709551615]", "[-1]", "[0]"]
        {
            let error =
                SessionSnapshot::from_bytes(&sealed(&header_with(shape, &print), &[0; 8])).unwrap_err();
            assert_eq!(error.code(), "SESSION_INVALID", "{shape}");
        }
        for fingerprint in ["", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            let bytes = sealed(&header_with("[2]", fingerprint), &[0; 8]);
            assert_eq!(SessionSnapshot::from_bytes(&bytes).unwrap_err().code(), "SESSION_INVALID");
        }
        for header in
            ["", "null", "{}", &"[".repeat(100_000), &header_with("[2]", &print).replace("seed", "sead")]
        {
            assert_eq!(
                SessionSnapshot::from_bytes(&sealed(header, &[0; 8])).unwrap_err().code(),
                "SESSION_INVALID"
            );
        }
        let mut endless = b"node-mamba-session/1\n".to_vec();
        endless.extend([0xFF; 100]);
        let error = SessionSnapshot::from_bytes(&endless).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }

    #[test]
    fn files_that_are_no_session_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let code = |path: &Path| SessionSnapshot::load(path).unwrap_err().code();
        assert_eq!(code(&folder.path().join("none")), "FILE_NOT_FOUND");
        let path = folder.path().join("other");
        std::fs::write(&path, b"{}").unwrap();
        assert_eq!(code(&path), "SESSION_INVALID");
        let huge = File::create(&path).unwrap();
        huge.set_len(1 << 42).unwrap(); // sparse: 4 TiB of zeros
        assert_eq!(code(&path), "SESSION_INVALID");
        #[cfg(unix)]
        {
            assert_eq!(code(folder.path()), "SESSION_INVALID");
            assert_eq!(code(Path::new("/dev/zero")), "SESSION_INVALID");
        }
    }

    #[test]
    fn another_model_is_refused_by_what_differs() {
        let session = snapshot();
        session.check_model(&spec(5), &session.fingerprint).unwrap();
        let refused = |spec: &StateSpec, fingerprint: &[u8; 32]| {
            let error = session.check_model(spec, fingerprint).unwrap_err();
            assert_eq!(error.code(), "SESSION_MISMATCH");
            error.to_string()
        };
        let message = refused(&spec(6), &session.fingerprint);
        assert!(message.contains("layer 0's conv_state is [3, 5], expected [3, 6]"), "{message}");
        let mut fewer = spec(5);
        fewer.entries.pop();
        assert!(refused(&fewer, &session.fingerprint).contains("number of state tensors is 6, expected 5"));
        let mut other = spec(5);
        other.entries[1].name = "h".into();
        assert!(
            refused(&other, &session.fingerprint).contains("ssm_state of layer 0, expected h of layer 0")
        );
        assert!(refused(&spec(5), &[0; 32]).contains("fingerprint is 00070e15"));
    }

    #[test]
    fn a_failed_save_keeps_the_old_session() {
        let folder = tempfile::tempdir().unwrap();
        let error = snapshot().save(&folder.path().join("none/x")).unwrap_err();
        assert_eq!(error.code(), "FILE_NOT_FOUND");
    }
}
