// Stand-ins for NVIDIA's driver and libraries, so that what goes wrong with the real ones can be tried anywhere.
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** What the driver says. */
export interface FakeDriver {
  /** As cuDriverGetVersion counts. */
  version?: number
  /** What cuInit returns. */
  init?: number
  /** Seconds that cuInit takes. */
  seconds?: number
  devices?: number
  capability?: [major: number, minor: number]
}

/** Writes libcuda.so.1 into the folder. */
export function writeDriver(folder: string, driver: FakeDriver = {}): void {
  const { version = 13000, init = 0, seconds = 0, devices = 1, capability = [9, 0] } = driver
  compile(
    folder,
    'libcuda.so.1',
    `#include <stdio.h>
    #include <stddef.h>
    #include <unistd.h>
    int cuDriverGetVersion(int *version) { *version = ${version}; return 0; }
    int cuInit(unsigned flags) { sleep(${seconds}); return flags ? 1 : ${init}; }
    int cuDeviceGetCount(int *count) { *count = ${devices}; return 0; }
    int cuDeviceGet(int *device, int i) { *device = 40 + i; return 0; }
    int cuDeviceGetAttribute(int *value, int which, int device) {
      if (device != 40) return 101;
      *value = which == 75 ? ${capability[0]} : which == 76 ? ${capability[1]} : -1;
      return 0;
    }
    int cuDeviceGetName(char *name, int length, int device) {
      snprintf(name, length, "Fake GPU %d", device);
      return 0;
    }
    int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return device != 40; }
    int cuGetErrorName(int error, const char **name) { *name = error == 999 ? "CUDA_ERROR_UNKNOWN" : NULL; return 0; }`,
  )
}

/** Writes the CUDA libraries that are loaded before the addon. The second needs the first, as the real one does. */
export function writeLibraries(folder: string): void {
  compile(folder, 'libcublasLt.so.13', 'int fake_cublas_lt(void) { return 13; }')
  compile(
    folder,
    'libcublas.so.13',
    'int fake_cublas_lt(void); int fake_cublas(void) { return fake_cublas_lt(); }',
    [join(folder, 'libcublasLt.so.13')],
  )
}

/** A shared library from C. */
export function compile(folder: string, name: string, source: string, libraries: string[] = []): void {
  mkdirSync(folder, { recursive: true })
  const file = join(folder, `${name}.c`)
  writeFileSync(file, source)
  execFileSync('cc', [
    '-shared',
    '-fPIC',
    `-Wl,-soname,${name}`,
    '-o',
    join(folder, name),
    file,
    ...libraries,
  ])
}
