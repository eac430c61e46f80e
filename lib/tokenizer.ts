import { direct } from './call.js'
import { MambaError } from './errors.js'
import { toIds } from './input.js'
import type { NativeModel } from './native.js'
import { Options, shown } from './options.js'

/** How ids become text. */
export interface DecodeOptions {
  /** Leave out special tokens such as `<|endoftext|>`. Default: true. */
  skipSpecialTokens?: boolean
}

/**
 * A model's tokenizer, as `model.tokenizer`. Where the model has none (`available` is false), its methods
 * throw `TOKENIZER_MISSING`.
 *
 * Both directions run on the calling thread: a page of text takes well under a millisecond. Long texts are
 * best given to the model as they are, which tokenizes them on a thread of its own.
 */
export class Tokenizer {
  readonly #native: () => NativeModel
  /** Whether there is one. */
  readonly available: boolean
  /** Number of tokens, added ones included; 0 without a tokenizer. The model's own `vocabSize` may be larger. */
  readonly vocabSize: number

  /** @internal */
  constructor(native: () => NativeModel, size: number | undefined) {
    this.#native = native
    this.available = size !== undefined
    this.vocabSize = size ?? 0
  }

  /**
   * The token ids of a text. Special tokens written out in the text become their ids.
   *
   * @throws {@link MambaError} `TOKENIZER_MISSING`, `TOKENIZER_INVALID`, `INVALID_ARGUMENT`, `MODEL_DISPOSED`
   */
  encode(text: string): Uint32Array {
    if (typeof text !== 'string') {
      throw new MambaError('INVALID_ARGUMENT', `the text is ${shown(text)}, expected a string`)
    }
    return direct(() => this.#native().encode(text))
  }

  /**
   * The text of token ids. Bytes that are no complete UTF-8 character become U+FFFD; ids that the tokenizer
   * does not have (a padded vocabulary has some) are left out.
   *
   * @throws {@link MambaError} `TOKENIZER_MISSING`, `TOKENIZER_INVALID`, `INVALID_ARGUMENT`,
   * `TOKEN_OUT_OF_RANGE`, `MODEL_DISPOSED`
   */
  decode(ids: readonly number[] | Uint32Array, options?: DecodeOptions): string {
    const skip = new Options(options, ['skipSpecialTokens']).boolean('skipSpecialTokens') ?? true
    return direct(() => this.#native().decode(toIds(ids), skip))
  }
}
