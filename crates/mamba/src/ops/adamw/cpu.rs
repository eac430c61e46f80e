//! One pass over all tensors, in parallel over pieces of them.
