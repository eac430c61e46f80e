use super::*;

/// A pseudo-random sequence in [0, 1) (an LCG; the high bits).
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn random_logits(seed: u64, count: usize) -> Vec<f32> {
    let mut next = noise(seed);
    (0..count).map(|_| (next() * 16.0 - 8.0) as f32).collect()
}

fn sampling() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, ..SamplerOptions::default() }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    logits.iter().map(|l| f64::from(*l) - sum.ln()).collect()
}

/// Steps 1 to 7 as the documentation has them, one after the other over sorted lists: each id's probability.
fn naive(options: &SamplerOptions, context: &[u32], logits: &[f32]) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for (id, bias) in &options.logit_bias {
        logits[*id as usize] += f64::from(*bias);
    }
    let window = &context[context.len().saturating_sub(options.penalty_window)..];
    for (id, logit) in logits.iter_mut().enumerate() {
        let count = window.iter().filter(|token| **token as usize == id).count() as f64;
        if count > 0.0 {
            let penalty = f64::from(options.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit -= count * f64::from(options.frequency_penalty) + f64::from(options.presence_penalty);
        }
    }
    let mut sorted: Vec<(usize, f64)> =
        logits.iter().map(|l| l / f64::from(options.temperature)).enumerate().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let softmax = |list: &[(usize, f64)]| {
        let total: f64 = list.iter().map(|(_, l)| (l - list[0].1).exp()).sum();
        list.iter().map(|(_, l)| (l - list[0].1).exp() / total).collect::<Vec<f64>>()
    };
    if options.top_k > 0 {
        sorted.truncate(options.top_k as usize);
    }
    let mut before = 0.0;
    let mut kept = 0;
    for p in softmax(&sorted) {
        if options.top_p < 1.0 && kept > 0 && before >= f64::from(options.top_p) {
            break;
        }
        before += p;
        kept += 1;
    }
    sorted.truncate(kept);
    let p = softmax(&sorted);
    let kept = p.iter().filter(|x| **x >= f64::from(options.min_p) * p[0]).count();
    sorted.truncate(kept);
    let mut all = vec![0.0; logits.len()];
    for (p, (id, _)) in softmax(&sorted).iter().zip(&sorted) {
        all[*id] = *p;
    }
    all
}

/// The probabilities that the sampler draws by.
fn actual(options: &SamplerOptions, context: &[u32], logits: &[f32]) -> Vec<f64> {
    let mut logits = logits.to_vec();
    let mut sampler = Sampler::new(options.clone(), context);
    Summary::of(&mut logits).unwrap();
    sampler.adjust(&mut logits);
    sampler.weigh(&logits, logits[largest(&logits)]);
    let mut all = vec![0.0; logits.len()];
    if sampler.truncate(&logits) {
        assert!(sampler.kept.is_sorted());
        for id in &sampler.kept {
            all[*id as usize] = f64::from(sampler.weights[*id as usize]);
        }
    } else {
        all = sampler.weights.iter().map(|w| f64::from(*w)).collect();
    }
    let total: f64 = all.iter().sum();
    all.iter().map(|w| w / total).collect()
}

#[test]
fn distributions_are_those_of_the_definition() {
    for seed in 0..400 {
        let mut next = noise(seed);
        let mut some = |of: &[f32]| of[(next() * of.len() as f64) as usize];
        let vocab = some(&[1.0, 2.0, 7.0, 100.0, 1000.0, 3000.0]) as usize;
        let context: Vec<u32> = (0..600).map(|i| (i * i * 7 + i) % vocab as u32).collect();
        let options = SamplerOptions {
            temperature: some(&[0.05, 0.7, 1.0, 3.0, 100.0]),
            top_k: some(&[0.0, 1.0, 3.0, 40.0, 900.0, 5000.0]) as u32,
            top_p: some(&[0.0, 0.3, 0.9, 0.99, 1.0, 1.0]),
            min_p: some(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            repetition_penalty: some(&[1.0, 1.3, 0.8]),
            frequency_penalty: some(&[0.0, 0.1, -0.1]),
            presence_penalty: some(&[0.0, 0.5, -0.5]),
            penalty_window: some(&[0.0, 5.0, 256.0, 1000.0]) as usize,
            logit_bias: vec![(0, some(&[0.0, 5.0, -5.0]))],
            ..sampling()
        };
        options.validate(vocab).unwrap();
        let logits = random_logits(seed, vocab);
        let (expected, actual) = (naive(&options, &context, &logits), actual(&options, &context, &logits));
        for (id, (e, a)) in expected.iter().zip(&actual).enumerate() {
            assert!((e - a).abs() < 2e-6, "seed {seed}, id {id}: {a}, expected {e}: {options:?}");
            // A kept token of a probability this small is as good as none.
            assert_eq!(*e > 1e-30, *a > 1e-30, "seed {seed}, id {id}: {a}, expected {e}: {options:?}");
        }
    }
}

#[test]
fn draws_follow_the_running_sum_in_order_of_ids() {
    for options in [sampling(), SamplerOptions { top_k: 50, top_p: 0.95, min_p: 0.01, ..sampling() }] {
        let options = SamplerOptions { seed: 42, ..options };
        let logits = random_logits(7, 500);
        let p = naive(&options, &[], &logits);
        let mut sampler = Sampler::new(options, &[]);
        for position in 0..2000 {
            let token = sampler.sample(&mut logits.clone(), position).unwrap().token as usize;
            let below: f64 = p[..token].iter().sum();
            let u = philox::uniform(42, position);
            assert!(below - 1e-6 <= u && u <= below + p[token] + 1e-6, "position {position}");
            assert!(p[token] > 0.0);
        }
    }
}

#[test]
fn frequencies_match_probabilities() {
    let options = SamplerOptions { temperature: 0.8, top_k: 20, seed: 5, ..sampling() };
    let logits: Vec<f32> = random_logits(3, 64).iter().map(|l| l / 4.0).collect();
    let p = naive(&options, &[], &logits);
    let draws = 50_000;
    let mut counts = vec![0.0; 64];
    let mut sampler = Sampler::new(options, &[]);
    for position in 0..draws {
        counts[sampler.sample(&mut logits.clone(), position).unwrap().token as usize] += 1.0;
    }
    let chi_square: f64 = counts
        .iter()
        .zip(&p)
        .map(|(n, p): (&f64, &f64)| {
            if *p == 0.0 {
                assert_eq!(*n, 0.0);
                return 0.0;
            }
            let expected = p * draws as f64;
            (n - expected).powi(2) / expected
        })
        .sum();
    // 19 degrees of freedom: 0.1% of true samples lie above 43.8.
    assert!(chi_square < 43.8, "{chi_square}");
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let options = SamplerOptions { seed: 9, top_p: 0.9, ..sampling() };
    let rows: Vec<Vec<f32>> = (0..50).map(|i| random_logits(i, 300)).collect();
    let fresh: Vec<u32> = (0..50)
        .map(|i| Sampler::new(options.clone(), &[]).sample(&mut rows[i].clone(), i as u64).unwrap().token)
        .collect();
    // One sampler backwards, with tokens observed and other positions drawn between.
    let mut used = Sampler::new(options.clone(), &[1, 2, 3]);
    for i in (0..50).rev() {
        used.observe(i as u32);
        used.sample(&mut rows[0].clone(), 1000 + i as u64).unwrap();
        assert_eq!(used.sample(&mut rows[i].clone(), i as u64).unwrap().token, fresh[i]);
    }
    let mut other = Sampler::new(SamplerOptions { seed: 10, ..options }, &[]);
    let differ =
        (0..50).filter(|i| other.sample(&mut rows[*i].clone(), *i as u64).unwrap().token != fresh[*i]);
    assert!(differ.count() > 20);
}

#[test]
fn greedy_takes_the_largest_and_of_equal_ones_the_lowest() {
    let mut sampler = Sampler::new(SamplerOptions::default(), &[]);
    for (logits, expected) in [
        (vec![1.0, 3.0, 3.0, 2.0], 1),
        (vec![-5.0], 0),
        (vec![0.0; 5000], 0),
        (vec![f32::NAN, -1.0, f32::NAN, -1.0], 1),
        (vec![f32::NEG_INFINITY, f32::NAN, -3e38], 2),
        (vec![1.0, f32::INFINITY, 2.0, f32::INFINITY], 1),
    ] {
        assert_eq!(sampler.sample(&mut logits.clone(), 0).unwrap().token, expected, "{logits:?}");
    }
    for at in [0, 1023, 1024, 2500, 4999] {
        let mut logits = random_logits(1, 5000);
        logits[at] = 9.0;
        logits[4999] = 9.0;
        assert_eq!(sampler.sample(&mut logits, 0).unwrap().token, at as u32);
    }
}

#[test]
fn what_is_not_finite_is_never_drawn() {
    let mut logits = vec![f32::NAN; 3000];
    logits[2000] = -4.0;
    logits[2001] = -4.0;
    for options in [
        sampling(),
        SamplerOptions { top_k: 5, ..sampling() },
        SamplerOptions { top_p: 0.99, ..sampling() },
        SamplerOptions { min_p: 0.0001, temperature: 100.0, ..sampling() },
        SamplerOptions { logit_bias: vec![(0, 50.0)], repetition_penalty: 2.0, ..sampling() },
    ] {
        let mut sampler = Sampler::new(options, &[0, 1]);
        for position in 0..100 {
            let sampled = sampler.sample(&mut logits.clone(), position).unwrap();
            assert!([2000, 2001].contains(&sampled.token));
            assert!((sampled.logprob - 0.5f32.ln()).abs() < 1e-6);
        }
    }
    for mut hopeless in [vec![f32::NAN; 10], vec![f32::NEG_INFINITY; 3000], vec![]] {
        let error = Sampler::new(sampling(), &[]).sample(&mut hopeless, 17).unwrap_err();
        assert_eq!(error.code(), "LOGITS_NOT_FINITE");
        assert!(error.to_string().contains("17"));
    }
}

#[test]
fn extreme_options_do_not_panic_or_choose_nothing() {
    for extreme in [f32::MIN_POSITIVE / 2.0, f32::MAX] {
        let options = SamplerOptions {
            temperature: extreme,
            repetition_penalty: extreme,
            frequency_penalty: -f32::MAX,
            presence_penalty: f32::MAX,
            logit_bias: vec![(0, f32::MAX), (0, f32::MAX), (1, f32::MIN)],
            ..sampling()
        };
        options.validate(4).unwrap();
        let mut logits = vec![f32::MAX, f32::MIN, 1.0, 0.0];
        let sampled = Sampler::new(options, &[0, 2, 2, 3]).sample(&mut logits, 0).unwrap();
        assert!(sampled.token < 4 && sampled.logprob <= 0.0, "{sampled:?}");
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = random_logits(11, 3000);
    let expected = log_softmax(&logits);
    let mut by_rank: Vec<u32> = (0..3000).collect();
    by_rank.sort_by(|a, b| expected[*b as usize].total_cmp(&expected[*a as usize]));
    let options = SamplerOptions {
        temperature: 0.5,
        top_k: 3,
        logit_bias: vec![(17, 100.0)],
        repetition_penalty: 2.0,
        logprobs: 20,
        ..sampling()
    };
    let sampled = Sampler::new(options, &[17, 18]).sample(&mut logits.clone(), 0).unwrap();
    assert_eq!(sampled.token, 17);
    assert!((f64::from(sampled.logprob) - expected[17]).abs() < 2e-6);
    assert_eq!(sampled.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), by_rank[..20]);
    for (id, logprob) in sampled.top {
        assert!((f64::from(logprob) - expected[id as usize]).abs() < 2e-6);
    }
    let mut few = Sampler::new(SamplerOptions { logprobs: 5, ..SamplerOptions::default() }, &[]);
    let top = few.sample(&mut [1.0, f32::NAN, 1.0], 0).unwrap().top;
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn top_p_keeps_at_least_one_and_no_more_than_needed() {
    let kept = |top_p: f32, logits: &[f32]| {
        let p = actual(&SamplerOptions { top_p, ..sampling() }, &[], logits);
        (0..p.len()).filter(|i| p[*i] > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(kept(0.0, &[0.0, 5.0, 1.0]), [1]);
    assert_eq!(kept(0.5, &[0.0; 4]), [0, 1]);
    assert_eq!(kept(0.51, &[0.0; 4]), [0, 1, 2]);
    assert_eq!(kept(1.0, &[0.0; 4]), [0, 1, 2, 3]);
    // 3000 equal tokens: far beyond the first look.
    assert_eq!(kept(0.5, &vec![0.25; 3000]).len(), 1500);
}

#[test]
fn the_window_forgets() {
    let options = SamplerOptions { penalty_window: 3, presence_penalty: 1.0, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(options, &[5, 6, 7, 8]);
    assert_eq!(sampler.window(), [6, 7, 8]);
    sampler.observe(6);
    sampler.observe(9);
    assert_eq!(sampler.window(), [8, 6, 9]);
    let mut logits = vec![0.0; 10];
    sampler.sample(&mut logits, 0).unwrap();
    assert_eq!(logits, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0, -1.0]);
}

#[test]
fn senseless_options_are_refused_by_their_public_names() {
    let refused = |change: fn(&mut SamplerOptions)| {
        let mut options = SamplerOptions::default();
        options.validate(10).unwrap();
        change(&mut options);
        match options.validate(10).unwrap_err() {
            Error::OptionInvalid { option, value, .. } => (option, value),
            other => panic!("{other}"),
        }
    };
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(refused(|o| o.temperature = f32::NAN), named("temperature", "NaN"));
    assert_eq!(refused(|o| o.temperature = -0.5), named("temperature", "-0.5"));
    assert_eq!(refused(|o| o.temperature = f32::INFINITY), named("temperature", "inf"));
    assert_eq!(refused(|o| o.top_p = 1.5), named("topP", "1.5"));
    assert_eq!(refused(|o| o.top_p = f32::NAN), named("topP", "NaN"));
    assert_eq!(refused(|o| o.min_p = -0.1), named("minP", "-0.1"));
    assert_eq!(refused(|o| o.repetition_penalty = 0.0), named("repetitionPenalty", "0"));
    assert_eq!(refused(|o| o.repetition_penalty = f32::NAN), named("repetitionPenalty", "NaN"));
    assert_eq!(refused(|o| o.frequency_penalty = f32::NAN), named("frequencyPenalty", "NaN"));
    assert_eq!(refused(|o| o.presence_penalty = f32::INFINITY), named("presencePenalty", "inf"));
    assert_eq!(refused(|o| o.penalty_window = 65_537), named("penaltyWindow", "65537"));
    assert_eq!(refused(|o| o.logit_bias = vec![(3, f32::NAN)]), named("logitBias[3]", "NaN"));
    assert_eq!(refused(|o| o.logit_bias = vec![(10, 1.0)]), named("logitBias[10]", "1"));
    assert_eq!(refused(|o| o.logprobs = 101), named("logprobs", "101"));
}

#[test]
fn exp_is_exact_to_single_precision() {
    for i in 0..=870_000 {
        let x = i as f32 * -1e-4;
        let expected = f64::from(x).exp();
        assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2e-7, "exp({x}) = {}", exp(x));
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!((exp(-88.0), exp(f32::MIN), exp(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
}
