'use strict'

// The binary of this platform. Where there is none, npm installs this package without it, and node-mamba says so.
module.exports = require(`@node-mamba/cuda-${process.platform}-${process.arch}-gnu`)
