// Type tests: tsc checks them (npm run check), nothing runs them. `Equal` fails to compile when two types
// differ; a line that must not compile has @ts-expect-error, which is an error itself when the line compiles.
import { MambaError, type MambaErrorCode, version } from 'node-mamba'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function expectType<A, B>(..._equal: Equal<A, B> extends true ? [] : [never]): void {}

expectType<ReturnType<typeof version>, string>()

const error = new MambaError('MODEL_DISPOSED', 'the model was disposed of', { cause: new Error('x') })
expectType<typeof error.code, MambaErrorCode>()
expectType<typeof error.message, string>()
// @ts-expect-error: not a code
void new MambaError('NO_SUCH_CODE', 'x')
// @ts-expect-error: code is read-only
error.code = 'ABORTED'
