// A model behind OpenAI's API, asked with OpenAI's client; a session makes the second answer go on from the first.
// node --import=tsx examples/server.ts
import { Mamba } from 'node-mamba'
import { serve } from 'node-mamba/server'
import OpenAI from 'openai'

const model = await Mamba.load()
const server = await serve({ models: { novels: model }, apiKeys: ['a-secret'], port: 0 })
try {
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'a-secret' })
  for (const prompt of ['It was a dark and stormy night, and the', ' But in the morning']) {
    process.stdout.write(prompt)
    // The field `session` is ours, so OpenAI's types do not know it.
    const request = { model: 'novels', prompt, max_tokens: 40, temperature: 0.7, seed: 3, session: 'night' }
    const stream = await client.completions.create({
      ...(request as OpenAI.CompletionCreateParamsNonStreaming),
      stream: true,
      stream_options: { include_usage: true },
    })
    for await (const { choices, usage } of stream) {
      process.stdout.write(choices[0]?.text ?? '')
      if (!usage) continue
      const cached = usage.prompt_tokens_details!.cached_tokens!
      console.log(
        `\n(${usage.prompt_tokens} tokens of context, ${usage.prompt_tokens - cached} of them computed)`,
      )
    }
  }
} finally {
  await server.close()
  await model.dispose()
}
