import type { Context } from 'hono'
import type { Completion, GeneratedToken, GenerateOptions } from '../generate.js'
import { answer, type Job, type Writer } from './answers.js'
import { readBody } from './body.js'
import type { Env, Exchange, ServedModel, ServerContext } from './context.js'
import { ApiError } from './errors.js'
import {
  checkChoices,
  checkMaxTokens,
  checkPromptTokens,
  generateOptions,
  LogprobQueue,
  textOf,
  type TokenNames,
  type NamedLogprob,
} from './generation.js'
import { chatRequest, type ChatRequest } from './schemas.js'

/** POST /v1/chat/completions */
export async function chat(c: Context<Env>, context: ServerContext): Promise<Response> {
  const exchange = context.begin(c)
  return exchange.answer(async () => {
    const body = await readBody(c, chatRequest, context.limits.bodyBytes)
    const served = context.model(body.model)
    if (!served.chatTemplate) {
      const message = `the model '${served.name}' has no chat template, expected one that has (or use /v1/completions)`
      throw new ApiError(400, 'chat_template_missing', message, { param: 'model' })
    }
    const n = body.n ?? 1
    checkMaxTokens(body.max_completion_tokens, context.limits, 'max_completion_tokens')
    checkMaxTokens(body.max_tokens, context.limits, 'max_tokens')
    checkChoices(1, n, context.limits)
    const prompt = await served.chatTemplate.render(toMessages(body))
    await checkPromptTokens(served.model, [prompt], context.limits.promptTokens, 'messages')

    const { names } = served
    return answer(c, context, exchange, {
      served,
      body,
      prefix: 'chatcmpl',
      object: { whole: 'chat.completion', chunk: 'chat.completion.chunk' },
      writers: Array.from({ length: n }, (_, index) => new ChatWriter(index, body, names)),
      needsTokens: body.logprobs ?? false,
      ...(await generations(c, context, exchange, served, body, prompt)),
    })
  })
}

function toMessages({ messages }: ChatRequest) {
  return messages.map(({ role, content, name }) => ({
    // OpenAI's newer name of the same; no template knows it.
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : content.map((part) => part.text).join(''),
    ...(name != null && { name }),
  }))
}

/** How the answers are started: from the prompt alone, or from what a session knows of it. */
async function generations(
  c: Context<Env>,
  context: ServerContext,
  exchange: Exchange,
  { name, model, chatTemplate }: ServedModel,
  body: ChatRequest,
  prompt: string,
): Promise<Pick<Job, 'stream' | 'complete' | 'prompt' | 'done'>> {
  const stopTokens = chatTemplate!.endOfTurn(model.tokenizer)
  const options = (index: number): GenerateOptions => ({
    ...generateOptions(body, index, exchange.queued),
    maxTokens: body.max_completion_tokens ?? body.max_tokens ?? context.limits.completionTokens,
    logprobs: body.top_logprobs ?? 0,
    stopTokens,
  })
  if (body.session == null) {
    return {
      stream: (index) => model.generate(prompt, options(index)),
      complete: (index) => model.complete(prompt, options(index)),
    }
  }
  if ((body.n ?? 1) > 1) {
    throw new ApiError(400, 'invalid_value', 'a session goes on in one way, expected n 1', {
      param: 'session',
    })
  }
  const conversation = context.sessions.open(exchange, c.get('caller'), body.session)
  const { session, known } = await conversation.startOf(prompt, { name, model })
  const cached = session.tokens
  if (known < prompt.length) await session.append(prompt.slice(known), exchange.queued)
  const tokens = session.tokens
  // An answer that is asked for again, or cut at a stop text, starts from here.
  const before = session.fork()
  return {
    stream: (index) => session.generate(options(index)),
    complete: (index) => session.generate(options(index)).result,
    prompt: { tokens, cached },
    done: ([completion]) => {
      // As the template will write it next time: with the token that ended the turn.
      const answered = model.tokenizer.decode(completion!.tokens, { skipSpecialTokens: false })
      return conversation.save({ name, model }, [
        { session, text: prompt + answered },
        { session: before, text: prompt },
      ])
    },
  }
}

class ChatWriter implements Writer {
  readonly #index: number
  readonly #withLogprobs: boolean
  readonly #queue: LogprobQueue
  readonly #all: object[] = []

  constructor(index: number, body: ChatRequest, names: TokenNames) {
    this.#index = index
    this.#withLogprobs = body.logprobs ?? false
    this.#queue = new LogprobQueue(names)
  }

  head(): object[] {
    return [this.#part({ role: 'assistant', content: '' }, null, null)]
  }

  tokens(tokens: readonly GeneratedToken[]): object | undefined {
    const logprobs = this.#withLogprobs ? this.#more(this.#queue.add(tokens)) : null
    const content = textOf(tokens)
    return content === '' ? undefined : this.#part({ content }, logprobs, null)
  }

  end(completion: Completion): object {
    const rest = this.#withLogprobs ? this.#more(this.#queue.end(completion)) : null
    return this.#part({}, rest, completion.finishReason)
  }

  whole(completion: Completion): object {
    if (this.#withLogprobs) this.#more(this.#queue.end(completion))
    return {
      index: this.#index,
      message: { role: 'assistant', content: completion.text, refusal: null },
      logprobs: this.#withLogprobs ? { content: this.#all, refusal: null } : null,
      finish_reason: completion.finishReason,
    }
  }

  #part(delta: object, content: object[] | null, finish_reason: Completion['finishReason'] | null): object {
    return { index: this.#index, delta, logprobs: content && { content, refusal: null }, finish_reason }
  }

  /** Adds to the whole, and gives what was added. */
  #more(logprobs: NamedLogprob[]): object[] {
    const lines = logprobs.map(({ top, ...item }) => ({ ...item, top_logprobs: top }))
    this.#all.push(...lines)
    return lines
  }
}
