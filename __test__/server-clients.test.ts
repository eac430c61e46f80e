// The clients that people use, as they come from npm, against a server on a socket.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { ChatOpenAI, OpenAI as LangChainOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { embedMany, generateText, streamText } from 'ai'
import test, { type ExecutionContext } from 'ava'
import OpenAI, { AuthenticationError, BadRequestError, NotFoundError } from 'openai'
import { useModel } from './helpers/model.js'
import { testServer } from './helpers/server.js'

const model = useModel()
const prompt = 'It was a dark and stormy night, and the'
const options = { maxTokens: 12, temperature: 0.5, seed: 7 }
const key = 'the-key'
const chat = [
  { role: 'system' as const, content: 'You tell stories.' },
  { role: 'user' as const, content: 'Tell one.' },
]
const rendered = 'system:\nYou tell stories.\nuser:\nTell one.\nassistant:\n'
const texts = ['a ship at sea', 'a boat on the water']

async function base(t: ExecutionContext): Promise<string> {
  return `${(await testServer(t, model(), { apiKeys: [key] })).url}/v1`
}

/** Vectors that came over the wire as f32 or as decimals of it. */
function areEqual(t: ExecutionContext, actual: readonly number[][], expected: readonly Float32Array[]) {
  t.deepEqual(
    actual.map((vector) => [...Float32Array.from(vector)]),
    expected.map((vector) => [...vector]),
  )
}

test('openai: completions, whole and streamed', async (t) => {
  const client = new OpenAI({ baseURL: await base(t), apiKey: key, maxRetries: 0 })
  const asked = { model: 'novels', prompt, max_tokens: 12, temperature: 0.5, seed: 7 }
  const expected = await model().complete(prompt, { ...options, logprobs: 2 })
  const whole = await client.completions.create({ ...asked, logprobs: 2 })
  t.is(whole.choices[0]!.text, expected.text)
  t.deepEqual(whole.choices[0]!.logprobs!.token_logprobs, [...expected.logprobs])
  t.is(whole.usage!.completion_tokens, 12)
  const { _request_id: requestId } = whole
  t.truthy(requestId)
  let text = ''
  let total: number | undefined
  const stream = await client.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  })
  for await (const part of stream) {
    text += part.choices[0]?.text ?? ''
    total = part.usage?.total_tokens ?? total
  }
  t.is(text, expected.text)
  t.is(total, whole.usage!.total_tokens)
})

test('openai: chat, whole, streamed and through its helper', async (t) => {
  const client = new OpenAI({ baseURL: await base(t), apiKey: key, maxRetries: 0 })
  const asked = { model: 'novels', messages: chat, max_completion_tokens: 12, temperature: 0.5, seed: 7 }
  const expected = await model().complete(rendered, options)
  const whole = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 1, n: 2 })
  t.is(whole.choices.length, 2)
  t.is(whole.choices[0]!.message.content, expected.text)
  t.is(whole.choices[0]!.logprobs!.content!.length, 12)
  let text = ''
  for await (const part of await client.chat.completions.create({ ...asked, stream: true }))
    text += part.choices[0]!.delta.content ?? ''
  t.is(text, expected.text)
  const helper = client.chat.completions.stream(asked)
  t.is(await helper.finalContent(), expected.text)
  // What OpenAI's API does not have goes beside it.
  const session = { ...asked, session: 'a' } as typeof asked
  await client.chat.completions.create(session)
  const again = await client.chat.completions.create(session)
  t.is(again.choices[0]!.message.content, expected.text)
  t.is(again.usage!.prompt_tokens_details!.cached_tokens, again.usage!.prompt_tokens)
})

test('openai: embeddings (base64 underneath), models, errors, leaving', async (t) => {
  const baseURL = await base(t)
  const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 })
  for (const encoding_format of [undefined, 'float'] as const) {
    const { data } = await client.embeddings.create({
      model: 'novels',
      input: texts,
      dimensions: 64,
      ...(encoding_format && { encoding_format }),
    })
    areEqual(
      t,
      data.map(({ embedding }) => embedding),
      await model().embed(texts, { dimensions: 64 }),
    )
  }
  t.deepEqual(
    (await client.models.list()).data.map(({ id }) => id),
    ['novels'],
  )
  t.is((await client.models.retrieve('novels')).id, 'novels')

  const asked = { model: 'novels', prompt, max_tokens: 5 }
  const noModel = await t.throwsAsync(client.completions.create({ ...asked, model: 'none' }), {
    instanceOf: NotFoundError,
  })
  t.deepEqual([noModel.code, noModel.param], ['model_not_found', 'model'])
  await t.throwsAsync(new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 }).models.list(), {
    instanceOf: AuthenticationError,
  })
  await t.throwsAsync(client.completions.create({ ...asked, temperature: 9 }), {
    instanceOf: BadRequestError,
  })
  const stream = await client.completions.create({ ...asked, max_tokens: 4000, stream: true })
  for await (const _ of stream) break // closes the connection
  t.true(stream.controller.signal.aborted)
})

test('AI SDK: text, streamed text and embeddings', async (t) => {
  const provider = createOpenAICompatible({
    name: 'mamba',
    baseURL: await base(t),
    apiKey: key,
    includeUsage: true,
  })
  const { system, messages } = { system: chat[0]!.content, messages: [chat[1]!] }
  const asked = { maxOutputTokens: 12, temperature: 0.5, seed: 7, maxRetries: 0 }
  const expected = await model().complete(rendered, options)
  const whole = await generateText({ model: provider.chatModel('novels'), system, messages, ...asked })
  t.is(whole.text, expected.text)
  t.is(whole.finishReason, 'length')
  t.is(whole.usage.outputTokens, 12)

  const stream = streamText({ model: provider.chatModel('novels'), system, messages, ...asked })
  let text = ''
  for await (const part of stream.textStream) text += part
  t.is(text, expected.text)
  t.is((await stream.usage).outputTokens, 12)

  const completion = await generateText({
    model: provider.completionModel('novels'),
    prompt,
    ...asked,
    stopSequences: [' never'],
  })
  // The provider writes a chat of its own around the prompt, so only its form is known.
  t.true(completion.text.length > 0)

  const { embeddings } = await embedMany({
    model: provider.embeddingModel('novels'),
    values: texts,
    maxRetries: 0,
  })
  areEqual(t, embeddings, await model().embed(texts))
  await t.throwsAsync(generateText({ model: provider.chatModel('none'), prompt, maxRetries: 0 }), {
    message: /there is no model 'none'/,
  })
})

test('LangChain: chat, completion and embeddings', async (t) => {
  const configuration = { baseURL: await base(t) }
  const common = {
    model: 'novels',
    apiKey: key,
    configuration,
    maxRetries: 0,
    temperature: 0.5,
    maxTokens: 12,
  }
  const expected = await model().complete(rendered, options)
  const talk = new ChatOpenAI({ ...common, modelKwargs: { seed: 7 } })
  const said = await talk.invoke(chat)
  t.is(said.content, expected.text)
  t.is(said.usage_metadata!.output_tokens, 12)
  let text = ''
  for await (const part of await talk.stream(chat)) text += part.content as string
  t.is(text, expected.text)

  const complete = new LangChainOpenAI({ ...common, modelKwargs: { seed: 7 } })
  t.is(await complete.invoke(prompt), (await model().complete(prompt, options)).text)

  const embedder = new OpenAIEmbeddings({ ...common, batchSize: 1 })
  areEqual(t, await embedder.embedDocuments(texts), await model().embed(texts))
  areEqual(t, [await embedder.embedQuery(texts[0]!)], [await model().embed(texts[0]!)])
})
