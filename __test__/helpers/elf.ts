/**
 * The versions of other libraries' symbols that an ELF64 little-endian file needs, such as `GLIBC_2.28`:
 * the section `.gnu.version_r`, as in the Linux Standard Base, "Symbol Version Requirements".
 */
export function requiredVersions(elf: Buffer): string[] {
  if (elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1)
    throw new Error('not a 64-bit ELF file')
  // Elf64_Ehdr: e_shoff at 40, e_shentsize at 58, e_shnum at 60.
  const table = Number(elf.readBigUInt64LE(40))
  const sections = Array.from({ length: elf.readUInt16LE(60) }, (_, index) => {
    const header = table + index * elf.readUInt16LE(58)
    return {
      type: elf.readUInt32LE(header + 4),
      offset: Number(elf.readBigUInt64LE(header + 24)),
      link: elf.readUInt32LE(header + 40),
    }
  })
  const needs = sections.find((section) => section.type === 0x6ffffffe) // SHT_GNU_verneed
  if (!needs) return []
  const strings = sections[needs.link]!.offset
  const text = (at: number) => elf.toString('latin1', strings + at, elf.indexOf(0, strings + at))

  const versions = []
  // A list of Elf64_Verneed, one a library, each with a list of Elf64_Vernaux; links are relative, 0 ends.
  for (let library = needs.offset, more = true; more;) {
    for (let version = library + elf.readUInt32LE(library + 8), another = true; another;) {
      versions.push(text(elf.readUInt32LE(version + 8)))
      const next = elf.readUInt32LE(version + 12)
      another = next !== 0
      version += next
    }
    const next = elf.readUInt32LE(library + 12)
    more = next !== 0
    library += next
  }
  return versions
}
