/**
 * What can go wrong, by name. A code never changes its meaning; new ones may be added in a minor version.
 */
export type MambaErrorCode =
  /** No native binary could be loaded; the message lists what was tried and why each failed. */
  | 'BINDING_NOT_FOUND'
  /** The package of a default model is not installed; the message names the command that installs it. */
  | 'MODEL_NOT_INSTALLED'
  /** Models are not downloaded from the Hugging Face hub in this version. */
  | 'HUB_UNAVAILABLE'
  /** An argument has the wrong type. */
  | 'INVALID_ARGUMENT'
  /** A file or folder that was asked for does not exist. */
  | 'FILE_NOT_FOUND'
  /** The operating system refused a read or a write. */
  | 'IO_ERROR'
  /** No space was left while a file was written; what was there before is untouched. */
  | 'DISK_FULL'
  /** A weights file is damaged: truncated, overlapping tensors, a header that cannot be true. */
  | 'CHECKPOINT_INVALID'
  /** A pickle names something that is not tensor data. It is never executed. */
  | 'PICKLE_UNSAFE'
  /** A tensor that the configuration calls for is not in the checkpoint. */
  | 'TENSOR_MISSING'
  /** A tensor has another shape than the configuration implies. */
  | 'TENSOR_SHAPE'
  /** A tensor has an element type that cannot be read. */
  | 'TENSOR_DTYPE'
  /** A tensor holds NaN or infinity (only looked for with `validate: true`). */
  | 'TENSOR_NOT_FINITE'
  /** `config.json` is malformed or describes a model that cannot be run. */
  | 'CONFIG_INVALID'
  /** The tokenizer file cannot be read. */
  | 'TOKENIZER_INVALID'
  /** The tokenizer produces ids that the model's vocabulary does not have. */
  | 'TOKENIZER_MISMATCH'
  /** Text was given, but the checkpoint came without a tokenizer. */
  | 'TOKENIZER_MISSING'
  /** A token id outside of the vocabulary. */
  | 'TOKEN_OUT_OF_RANGE'
  /** There is nothing to continue or embed. */
  | 'EMPTY_PROMPT'
  /** The model's logits leave no token to choose. */
  | 'LOGITS_NOT_FINITE'
  /** A text's vector is not finite; `validate: true` finds weights that are not. */
  | 'VECTOR_NOT_FINITE'
  /** An option has a value that makes no sense. */
  | 'OPTION_INVALID'
  /** The model was disposed of. */
  | 'MODEL_DISPOSED'
  /** The caller aborted the call. */
  | 'ABORTED'
  /** The engine's queue is full; try again when some requests have finished. */
  | 'QUEUE_FULL'
  /** Bytes that are not a session, or a damaged one. */
  | 'SESSION_INVALID'
  /** A session in a format that this version does not know. */
  | 'SESSION_VERSION'
  /** A session of another model. */
  | 'SESSION_MISMATCH'
  /** A session is used by two calls at once. */
  | 'SESSION_BUSY'
  /** Memory could not be had. */
  | 'OUT_OF_MEMORY'
  /** A device that is not there or not built in. */
  | 'DEVICE_UNAVAILABLE'
  /** A GPU that was in use and is no longer, for all models on it; those on the CPU live on. Restart the process. */
  | 'DEVICE_LOST'
  /** The gradients of too many steps in a row were not finite; the last checkpoint is from before. */
  | 'TRAINING_DIVERGED'
  /** There is nothing to train on. */
  | 'DATA_EMPTY'
  /** Training data that cannot be read: not the format that was said, or cut short. */
  | 'DATA_INVALID'
  /** A training run's folder that is damaged, or of another version. */
  | 'RUN_INVALID'
  /** A run is resumed with other settings than it was begun with. */
  | 'RUN_MISMATCH'
  /** An adapter's files cannot be read. */
  | 'ADAPTER_INVALID'
  /** An adapter of another model. */
  | 'ADAPTER_MISMATCH'
  /** There is no CUDA build for this platform; it is for Linux x64 with glibc. */
  | 'CUDA_UNSUPPORTED_PLATFORM'
  /** NVIDIA's driver (libcuda.so.1) is not there. */
  | 'CUDA_DRIVER_MISSING'
  /** NVIDIA's driver is older than 580 (CUDA 13.0). */
  | 'CUDA_DRIVER_TOO_OLD'
  /** NVIDIA's driver fails, or does not answer. */
  | 'CUDA_DRIVER_ERROR'
  /** NVIDIA's driver sees no GPU. */
  | 'CUDA_NO_DEVICE'
  /** The first GPU has a compute capability below 8.0. */
  | 'CUDA_DEVICE_TOO_OLD'
  /** The libraries of CUDA 13 cannot be loaded; the message lists where they were looked for. */
  | 'CUDA_LIBRARY_MISSING'
  /** The package `@node-mamba/cuda` is not installed, or its binary does not load. */
  | 'CUDA_PACKAGE_MISSING'
  /** The package `@node-mamba/cuda` has another version than `node-mamba`. */
  | 'CUDA_PACKAGE_VERSION'
  /** An optional package that this needs is not installed; the message names the command that installs it. */
  | 'PEER_MISSING'
  /** The checkpoint has no chat template. */
  | 'CHAT_TEMPLATE_MISSING'
  /** The chat template cannot be read. */
  | 'CHAT_TEMPLATE_INVALID'
  /** The chat template refused the messages, or failed on them. */
  | 'CHAT_TEMPLATE_FAILED'
  /** The chat template did not end within its time and memory. */
  | 'CHAT_TEMPLATE_TIMEOUT'
  /** A server's place for sessions (disk, Redis) does not answer. */
  | 'SESSION_STORE_UNAVAILABLE'
  /** A defect of this library. */
  | 'INTERNAL'

/** Every error that this package throws. `message` names the offending value and what was expected. */
export class MambaError extends Error {
  override readonly name = 'MambaError'
  /** Which error it is; stable, see {@link MambaErrorCode}. */
  readonly code: MambaErrorCode

  /** `options.cause` is the error underneath, where there is one. */
  constructor(code: MambaErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}
