//! One error type for the whole crate. Every variant has a stable code and carries the values that a
//! person needs to see what was wrong and what was expected.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. [`Error::code`] is stable and documented; the message names the offending value and
/// what was expected instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that was asked for does not exist.
    #[error("no such file or folder: {}{}", path.display(), hint(expected))]
    FileNotFound {
        /// What was looked for.
        path: PathBuf,
        /// What was expected there (may be empty).
        expected: String,
    },
    /// The operating system refused a read or a write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `read`, `write`, `map`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No space was left while a file was written; what was there before is untouched.
    #[error("no space left on the device while writing {}: {source}", path.display())]
    DiskFull {
        /// The file that was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A weights file is damaged: truncated, overlapping tensors, a header that cannot be true.
    #[error("{} is not a usable checkpoint: {reason}", path.display())]
    CheckpointInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the numbers.
        reason: String,
    },
    /// A pickle names something that is not tensor data. It is never executed.
    #[error("{} asks to run `{global}`, which is not tensor data; it was not executed. Convert it to safetensors", path.display())]
    PickleUnsafe {
        /// The file.
        path: PathBuf,
        /// The `module.name` that the pickle wanted to call.
        global: String,
    },
    /// A tensor that the configuration calls for is not in the checkpoint.
    #[error("tensor `{name}` is missing from {}; expected shape {expected:?}", path.display())]
    TensorMissing {
        /// Its canonical (official) name.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor `{name}` has shape {actual:?}, expected {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor has an element type that cannot be read.
    #[error("tensor `{name}` has dtype {dtype}, expected one of F64, F32, F16, BF16")]
    TensorDtype {
        /// Its name.
        name: String,
        /// The type that the file states.
        dtype: String,
    },
    /// A tensor holds NaN or infinity (only looked for with `validate: true`).
    #[error("tensor `{name}` holds {value} at element {index}, expected finite values")]
    TensorNotFinite {
        /// Its name.
        name: String,
        /// Flat index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// `config.json` is malformed or describes a model that this crate does not run.
    #[error("config.json: `{field}` is {value}, expected {expected}")]
    ConfigInvalid {
        /// The field (or `(file)` for the document as a whole).
        field: String,
        /// What it holds.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// The tokenizer file cannot be read.
    #[error("{} is not a usable tokenizer: {reason}", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The tokenizer produces ids that the model's vocabulary does not have.
    #[error("the tokenizer has ids up to {max_id}, but the model's vocabulary has {vocab_size} entries")]
    TokenizerMismatch {
        /// The largest id that the tokenizer can produce.
        max_id: u32,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// Text was given, but the checkpoint came without a tokenizer.
    #[error(
        "this model was loaded without a tokenizer, so it takes token ids, not text (pass `tokenizer` to load it from a path)"
    )]
    TokenizerMissing,
    /// A token id outside of the vocabulary.
    #[error("token id {id} at position {position} is out of range, expected 0 to {max}", max = vocab_size - 1)]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// Its place in the input.
        position: usize,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// There is nothing to continue or embed.
    #[error("the prompt is empty, expected at least one token{}", hint(what))]
    EmptyPrompt {
        /// Which input, where there are several (may be empty).
        what: String,
    },
    /// An option has a value that makes no sense.
    #[error("option `{option}` is {value}, expected {expected}")]
    OptionInvalid {
        /// Its name in the public API.
        option: String,
        /// The value.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// The model's logits leave no token to choose, or none to score.
    #[error(
        "all logits at position {position} are NaN or -infinity, expected finite ones (loading with `validate: true` finds weights that are not finite)"
    )]
    LogitsNotFinite {
        /// The index in the sequence that the token would have had.
        position: u64,
    },
    /// Training went on with gradients that were not finite for more steps than were allowed.
    #[error(
        "the gradients of {skipped} steps in a row, up to step {step}, were not finite (norm {grad_norm}), expected finite ones: a lower learning rate, a longer warm-up or a smaller clip may help"
    )]
    TrainingDiverged {
        /// The last step.
        step: u64,
        /// How many were skipped.
        skipped: u64,
        /// The last one's norm.
        grad_norm: f32,
    },
    /// A text's vector holds NaN or infinity.
    #[error(
        "the vector of input {index} is not finite, expected finite numbers (loading with `validate: true` finds weights that are not finite)"
    )]
    VectorNotFinite {
        /// Which input.
        index: usize,
    },
    /// The model was disposed of.
    #[error("the model was disposed of; load it again to use it")]
    ModelDisposed,
    /// The caller aborted the call.
    #[error("the call was aborted")]
    Aborted,
    /// The engine's queue is full.
    #[error(
        "the engine's queue holds {limit} requests already, expected fewer; try again when some have finished"
    )]
    QueueFull {
        /// The queue's bound.
        limit: usize,
    },
    /// Bytes that are not a session, or a damaged one.
    #[error("not a usable session: {reason}")]
    SessionInvalid {
        /// What is wrong.
        reason: String,
    },
    /// A session in a format that this version does not know.
    #[error("session format `{found}` is not known, expected `{expected}`")]
    SessionVersion {
        /// What the file says.
        found: String,
        /// What this version reads.
        expected: String,
    },
    /// A session of another model.
    #[error("this session belongs to another model: {what} is {found}, expected {expected}")]
    SessionMismatch {
        /// What differs.
        what: String,
        /// The session's value.
        found: String,
        /// The model's.
        expected: String,
    },
    /// A session is used by two calls at once.
    #[error("the session is in use by another call; wait for it, or fork the session")]
    SessionBusy,
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes for {what}{}", free.map_or(String::new(), |free| format!("; {free} are free on the device")))]
    OutOfMemory {
        /// How much.
        bytes: u64,
        /// For what.
        what: String,
        /// What a GPU has left; `None` for the computer's own memory, where nobody knows.
        free: Option<u64>,
    },
    /// A device that is not there or not built in.
    #[error("device `{device}` is not available: {reason}")]
    DeviceUnavailable {
        /// The name that was asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// A device that was in use and is no longer: a kernel failed on it, or the card is gone. All requests on it end with
    /// this error, and the driver lets this process use it no more; the process and its models on the CPU live on.
    #[error("device `{device}` was lost: {reason}. Restart the process to use it again")]
    DeviceLost {
        /// Which device.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// There is nothing to train on.
    #[error("no training data in {origin}: expected {expected}")]
    DataEmpty {
        /// Where it was looked for.
        origin: String,
        /// What was expected.
        expected: String,
    },
    /// Training data that cannot be read: not the format, or cut short.
    #[error("{} is not usable training data: {reason}", path.display())]
    DataInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A training run's folder that is damaged, or of another version.
    #[error("{} is not a usable training run: {reason}", path.display())]
    RunInvalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A run is resumed with another configuration than it was begun with.
    #[error("this run was begun with other settings: `{field}` is {found}, expected {expected}")]
    RunMismatch {
        /// The field that differs.
        field: String,
        /// What is asked for now.
        found: String,
        /// What the run was begun with.
        expected: String,
    },
    /// An adapter's files cannot be read.
    #[error("{} is not a usable adapter: {reason}", path.display())]
    AdapterInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An adapter of another model.
    #[error("this adapter does not fit the model: {what} is {found}, expected {expected}")]
    AdapterMismatch {
        /// What differs.
        what: String,
        /// The adapter's value.
        found: String,
        /// The model's.
        expected: String,
    },
    /// A defect of this library: a panic that was caught, a broken invariant.
    #[error("internal error: {message}. Please report it")]
    Internal {
        /// What was seen.
        message: String,
    },
}

fn hint(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl Error {
    /// The stable code, in SCREAMING_SNAKE_CASE, that the public API exposes as `MambaError.code`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::FileNotFound { .. } => "FILE_NOT_FOUND",
            Self::Io { .. } => "IO_ERROR",
            Self::DiskFull { .. } => "DISK_FULL",
            Self::CheckpointInvalid { .. } => "CHECKPOINT_INVALID",
            Self::PickleUnsafe { .. } => "PICKLE_UNSAFE",
            Self::TensorMissing { .. } => "TENSOR_MISSING",
            Self::TensorShape { .. } => "TENSOR_SHAPE",
            Self::TensorDtype { .. } => "TENSOR_DTYPE",
            Self::TensorNotFinite { .. } => "TENSOR_NOT_FINITE",
            Self::ConfigInvalid { .. } => "CONFIG_INVALID",
            Self::TokenizerInvalid { .. } => "TOKENIZER_INVALID",
            Self::TokenizerMismatch { .. } => "TOKENIZER_MISMATCH",
            Self::TokenizerMissing => "TOKENIZER_MISSING",
            Self::TokenOutOfRange { .. } => "TOKEN_OUT_OF_RANGE",
            Self::EmptyPrompt { .. } => "EMPTY_PROMPT",
            Self::OptionInvalid { .. } => "OPTION_INVALID",
            Self::LogitsNotFinite { .. } => "LOGITS_NOT_FINITE",
            Self::TrainingDiverged { .. } => "TRAINING_DIVERGED",
            Self::VectorNotFinite { .. } => "VECTOR_NOT_FINITE",
            Self::ModelDisposed => "MODEL_DISPOSED",
            Self::Aborted => "ABORTED",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::SessionInvalid { .. } => "SESSION_INVALID",
            Self::SessionVersion { .. } => "SESSION_VERSION",
            Self::SessionMismatch { .. } => "SESSION_MISMATCH",
            Self::SessionBusy => "SESSION_BUSY",
            Self::OutOfMemory { .. } => "OUT_OF_MEMORY",
            Self::DeviceUnavailable { .. } => "DEVICE_UNAVAILABLE",
            Self::DeviceLost { .. } => "DEVICE_LOST",
            Self::DataEmpty { .. } => "DATA_EMPTY",
            Self::DataInvalid { .. } => "DATA_INVALID",
            Self::RunInvalid { .. } => "RUN_INVALID",
            Self::RunMismatch { .. } => "RUN_MISMATCH",
            Self::AdapterInvalid { .. } => "ADAPTER_INVALID",
            Self::AdapterMismatch { .. } => "ADAPTER_MISMATCH",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    /// An `std::io::Error` met while doing `action` to `path`, sorted into the variant that fits.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::FileNotFound { path, expected: String::new() },
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path, source }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// A panic that was caught: a defect of this library or of what it calls.
    #[must_use]
    pub fn panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Internal { message: message.unwrap_or_else(|| "a panic without a message".into()) }
    }

    /// An option of the public API with a value that makes no sense.
    pub fn option(option: &str, value: impl std::fmt::Display, expected: &str) -> Self {
        Self::OptionInvalid { option: option.into(), value: value.to_string(), expected: expected.into() }
    }
}
