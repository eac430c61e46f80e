import { MambaError } from './errors.js'

/** What names a model on the Hugging Face hub: `owner/name`, or `owner/name@revision`. */
export const hubId = /^[\w-][\w.-]*\/[\w-][\w.-]*(@[\w./-]+)?$/

/** Where a model of the hub is on this machine. */
export function resolveHub(id: string): string {
  throw new MambaError(
    'HUB_UNAVAILABLE',
    `'${id}' names a model on the Hugging Face hub, and this version does not download models. ` +
      `Download it yourself and give the folder's path, such as './${id.replace(/@.*/, '').split('/')[1]}'`,
  )
}
