"""llama.cpp's side of the comparison: one measurement for each line read, answered by one JSON line, as the speed
example of ours with --stdin (and with the same names: prefill 512, decode 32 32, embed FILE).

    python peer.py MODEL.gguf THREADS [FOLDER]

All goes through the C functions; a timed loop calls llama_decode once a step and changes the batch's ids and positions.
With FOLDER (what the speed example's --save wrote), it instead says how far llama.cpp agrees with our f32 model.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

SEQUENCES = 32
MAX_TOKENS = 16384  # of one prompt, or of all texts to embed


@llama.llama_log_callback
def on_log(level, text, _):
    if level == 4:  # errors
        sys.stderr.write(text.decode())


class Peer:
    def __init__(self, path, threads):
        llama.llama_log_set(on_log, None)
        llama.llama_backend_init()
        self.path = path
        self.model = self.load(llama.llama_model_default_params())
        # Repacked weights (AMX above all) are the default and the fastest, but llama.cpp's AMX product takes a batch of
        # sequences for a batch of weights too, and crashes: several sequences use the weights as they are stored.
        parameters = llama.llama_model_default_params()
        parameters.use_extra_bufts = False
        self.plain_model = self.load(parameters)
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama.llama_vocab_n_tokens(self.vocabulary)
        self.d_model = llama.llama_model_n_embd(self.model)
        self.threads = threads
        self.contexts = {}

    def load(self, parameters):
        return llama.llama_model_load_from_file(self.path.encode(), parameters)

    def context(self, sequences, batch, pooling=None):
        """A context for so many sequences and tokens a micro-batch, kept; and its memory emptied."""
        key = (sequences, batch, pooling)
        if key not in self.contexts:
            parameters = llama.llama_context_default_params()
            parameters.n_ctx = MAX_TOKENS * sequences
            parameters.n_batch = parameters.n_ubatch = batch
            parameters.n_seq_max = sequences
            parameters.n_threads = parameters.n_threads_batch = self.threads
            if pooling is not None:
                parameters.embeddings = True
                parameters.pooling_type = pooling
            # Texts to embed are computed one by one even in one batch.
            model = self.plain_model if sequences > 1 and pooling is None else self.model
            self.contexts[key] = llama.llama_init_from_model(model, parameters)
        context = self.contexts[key]
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        return context

    def batch(self, sequences, logits):
        """A batch of token lists, one a sequence; logits: 'last', 'all'."""
        batch = llama.llama_batch_init(sum(map(len, sequences)), 0, 1)
        i = 0
        for sequence, tokens in enumerate(sequences):
            for position, token in enumerate(tokens):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = logits == 'all' or position == len(tokens) - 1
                i += 1
        batch.n_tokens = i
        return batch

    def decode(self, context, batch):
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError('llama_decode failed')
        llama.llama_synchronize(context)

    def ids(self, n):
        return [i * 7919 % self.vocabulary_size for i in range(n)]

    def tokenize(self, text):
        text = text.encode()
        tokens = (llama.llama_token * (len(text) + 8))()
        n = llama.llama_tokenize(self.vocabulary, text, len(text), tokens, len(tokens), False, False)
        return tokens[:n]

    def measure_prefill(self, n):
        n = int(n)
        context, ids = self.context(1, 512), self.ids(n)
        batches = []
        for start in range(0, n, 512):
            batch = self.batch([ids[start : start + 512]], 'last' if start + 512 >= n else 'none')
            for i in range(batch.n_tokens):
                batch.pos[i] = start + i
            batches.append(batch)
        began = time.perf_counter()
        for batch in batches:
            self.decode(context, batch)
        return rate(n, time.perf_counter() - began)

    def measure_decode(self, sequences, steps):
        sequences, steps = int(sequences), int(steps)
        context, ids = self.context(sequences, 512), self.ids(steps + 1)
        batch = self.batch([ids[:1]] * sequences, 'last')
        self.decode(context, batch)
        began = time.perf_counter()
        for step in range(1, steps + 1):
            for i in range(sequences):
                batch.token[i] = ids[step]
                batch.pos[i] = step
            self.decode(context, batch)
        return rate(sequences * steps, time.perf_counter() - began)

    def measure_embed(self, path):
        """Tokenizes, decodes all texts in one batch, and takes their normalized means."""
        texts = Path(path).read_text('utf-8').splitlines()
        # Room for the texts, rounded up so that contexts are few; made before the clock starts.
        room = max(512, -(-sum(len(self.tokenize(text)) for text in texts) // 512) * 512)
        context = self.context(SEQUENCES, room, llama.LLAMA_POOLING_TYPE_MEAN)
        began = time.perf_counter()
        sequences = [self.tokenize(text) for text in texts]
        batch = self.batch(sequences, 'all')
        self.decode(context, batch)
        self.embeddings = [self.embedding(context, i) for i in range(len(texts))]
        seconds = time.perf_counter() - began
        llama.llama_batch_free(batch)
        answer = rate(batch.n_tokens, seconds)
        answer['textsPerSecond'] = len(texts) / seconds
        return answer

    def embedding(self, context, sequence):
        values = llama.llama_get_embeddings_seq(context, sequence)
        vector = np.ctypeslib.as_array(values, (self.d_model,)).copy()
        return vector / np.linalg.norm(vector)

    def compare(self, folder):
        """How far logits, greedy tokens and an embedding agree with what our f32 model gave."""
        expected = json.loads((folder / 'expected.json').read_text())
        prompt = expected['prompt']
        logits = np.fromfile(folder / 'logits.f32', np.float32).reshape(len(prompt), -1).astype(np.float64)
        context = self.context(1, 512)
        self.decode(context, self.batch([prompt], 'all'))
        size = self.vocabulary_size
        row = lambda i: np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (size,)).copy()
        theirs = np.stack([row(i) for i in range(len(prompt))]).astype(np.float64)
        greedy = [int(theirs[-1].argmax())]
        while len(greedy) < len(expected['greedy']):
            batch = self.batch([greedy[-1:]], 'last')
            batch.pos[0] = len(prompt) + len(greedy) - 1
            self.decode(context, batch)
            greedy.append(int(row(-1).argmax()))
        context = self.context(SEQUENCES, 512, llama.LLAMA_POOLING_TYPE_MEAN)
        self.decode(context, self.batch([prompt], 'all'))
        cosines = (theirs * logits).sum(1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(logits, axis=1)
        same = [a == b for a, b in zip(greedy, expected['greedy'])] + [False]
        return {
            'logitsRelativeError': float(np.linalg.norm(theirs - logits) / np.linalg.norm(logits)),
            'logitsLeastCosine': float(cosines.min()),
            'greedyTokensEqual': same.index(False),
            'greedyTokens': len(greedy),
            'embeddingCosine': float(self.embedding(context, 0) @ np.array(expected['embedding'])),
        }


def rate(tokens, seconds):
    return {'tokens': tokens, 'seconds': seconds, 'tokensPerSecond': tokens / seconds}


def main():
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    if len(sys.argv) > 3:
        print(json.dumps(peer.compare(Path(sys.argv[3]))))
        return
    info = {
        'weightBytes': llama.llama_model_size(peer.model),
        'system': llama.llama_print_system_info().decode(),
    }
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        what, rest = line.strip().split(' ', 1)
        measure = getattr(peer, f'measure_{what}')
        print(json.dumps(measure(rest) if what == 'embed' else measure(*rest.split())), flush=True)


main()
