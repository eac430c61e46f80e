//! What an engine does and how fast.

use mamba::engine::{Percentiles, PrefixCacheStats, Stats};
use napi_derive::napi;

/// The core's statistics.
#[napi(object, object_from_js = false)]
pub struct NativeStats {
    pub requests_in_flight: u32,
    pub requests_total: f64,
    pub requests_refused: f64,
    pub waiting: u32,
    pub running: u32,
    pub resting: u32,
    pub slots: u32,
    pub mean_batch: f64,
    pub prompt_tokens_total: f64,
    pub generated_tokens_total: f64,
    pub prompt_tokens_per_second: f64,
    pub generated_tokens_per_second: f64,
    pub time_to_first_token: NativePercentiles,
    pub inter_token: NativePercentiles,
    pub prefix_cache: NativePrefixCacheStats,
    pub weight_bytes: f64,
    pub state_bytes: f64,
    /// Of a GPU.
    pub device_memory: Option<NativeDeviceMemory>,
}

/// Seconds.
#[napi(object, object_from_js = false)]
pub struct NativePercentiles {
    pub count: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// Of the prefix cache.
#[napi(object, object_from_js = false)]
pub struct NativePrefixCacheStats {
    pub lookups: f64,
    pub hits: f64,
    pub cached_tokens: f64,
    pub states: u32,
    pub bytes: f64,
}

/// Of the whole GPU.
#[napi(object, object_from_js = false)]
pub struct NativeDeviceMemory {
    pub free_bytes: f64,
    pub total_bytes: f64,
}

impl From<Stats> for NativeStats {
    fn from(stats: Stats) -> Self {
        let PrefixCacheStats { lookups, hits, cached_tokens, states, bytes } = stats.prefix_cache;
        Self {
            requests_in_flight: stats.requests_in_flight as u32,
            requests_total: stats.requests_total as f64,
            requests_refused: stats.requests_refused as f64,
            waiting: stats.waiting as u32,
            running: stats.running as u32,
            resting: stats.resting as u32,
            slots: stats.slots as u32,
            mean_batch: stats.mean_batch,
            prompt_tokens_total: stats.prompt_tokens_total as f64,
            generated_tokens_total: stats.generated_tokens_total as f64,
            prompt_tokens_per_second: stats.prompt_tokens_per_second,
            generated_tokens_per_second: stats.generated_tokens_per_second,
            time_to_first_token: stats.time_to_first_token.into(),
            inter_token: stats.inter_token.into(),
            prefix_cache: NativePrefixCacheStats {
                lookups: lookups as f64,
                hits: hits as f64,
                cached_tokens: cached_tokens as f64,
                states: states as u32,
                bytes: bytes as f64,
            },
            weight_bytes: stats.weight_bytes as f64,
            state_bytes: stats.state_bytes as f64,
            device_memory: stats
                .device_memory
                .map(|(free, all)| NativeDeviceMemory { free_bytes: free as f64, total_bytes: all as f64 }),
        }
    }
}

impl From<Percentiles> for NativePercentiles {
    fn from(Percentiles { count, p50, p90, p99 }: Percentiles) -> Self {
        Self { count: count as f64, p50, p90, p99 }
    }
}
