export type { Abortable, Priority, Queued } from './lib/call.js'
export { ChatTemplate, type ChatMessage } from './lib/chat-template.js'
export { convert, type ConvertOptions, type ConvertProgress } from './lib/convert.js'
export type { CudaDiagnosis } from './lib/cuda.js'
export { diagnose, version, type Diagnosis } from './lib/diagnose.js'
export type { EmbeddedBatch, EmbedOptions, EmbedStreamOptions } from './lib/embed.js'
export { MambaError, type MambaErrorCode } from './lib/errors.js'
export type {
  Completion,
  GeneratedToken,
  GenerateOptions,
  Generation,
  TokenLogprob,
  Usage,
} from './lib/generate.js'
export type { TextOrIds } from './lib/input.js'
export {
  Mamba,
  type Device,
  type DType,
  type ForwardOptions,
  type ForwardResult,
  type LoadOptions,
  type LoadProgress,
  type MambaConfig,
  type Score,
} from './lib/model.js'
export type { Session } from './lib/session.js'
export type { Percentiles, PrefixCacheStats, Stats, StatsStreamOptions } from './lib/stats.js'
export type { DecodeOptions, Tokenizer } from './lib/tokenizer.js'
export {
  mergeAdapter,
  train,
  type AdapterOptions,
  type DataFiles,
  type MergeOptions,
  type Objective,
  type TrainEvent,
  type TrainExample,
  type TrainingRun,
  type TrainOptions,
  type TrainProgress,
  type TrainResult,
} from './lib/train.js'
export { trainSchema, type AdapterTarget, type DataFormat, type ObjectiveName } from './lib/train-config.js'
