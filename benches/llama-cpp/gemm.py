"""OpenBLAS's f32 product (numpy's) of 512 x 768 by 768 x 3072: the best GFLOP/s. python gemm.py THREADS"""

import json
import sys
import time

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

threads = int(sys.argv[1])
a, b = np.ones((512, 768), np.float32), np.ones((768, 3072), np.float32)
out = np.empty((512, 3072), np.float32)
best = float('inf')
with threadpool_limits(threads):
    end = time.perf_counter() + 1
    while time.perf_counter() < end:
        began = time.perf_counter()
        np.matmul(a, b, out)
        best = min(best, time.perf_counter() - began)
kernel = [pool.get('architecture') for pool in threadpool_info() if pool['user_api'] == 'blas']
print(json.dumps({'gflops': 2 * 512 * 768 * 3072 / best * 1e-9, 'kernel': kernel[0] if kernel else None}))
