//! Divides the tokens of a step among those whose prompts it computes.

/// What a sequence wants of a step, and how much it counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// At least one.
    pub tokens: usize,
    pub weight: f64,
}

/// Shares of `room` tokens in proportion to the weights, at least one token each; what somebody does not need goes to
/// the others. `room` is at least the number of wants.
pub(super) fn divide(room: usize, wants: &[Want]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    // Those who are content with the least come first, so that what they leave is known when the others' turn comes.
    let need = |i: &usize| wants[*i].tokens as f64 / wants[*i].weight;
    order.sort_by(|a, b| need(a).total_cmp(&need(b)));
    let mut weight: f64 = wants.iter().map(|want| want.weight).sum();
    let mut room = room;
    let mut shares = vec![0; wants.len()];
    for (position, i) in order.iter().enumerate() {
        let (want, others) = (wants[*i], order.len() - position - 1);
        let fair = match others {
            0 => room,
            _ => (room as f64 * want.weight / weight).round() as usize,
        };
        shares[*i] = want.tokens.min(fair.max(1)).min(room.saturating_sub(others));
        room -= shares[*i];
        weight -= want.weight;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(room: usize, wants: &[(usize, f64)]) -> Vec<usize> {
        let wants: Vec<Want> =
            wants.iter().map(|(tokens, weight)| Want { tokens: *tokens, weight: *weight }).collect();
        divide(room, &wants)
    }

    #[test]
    fn in_proportion_and_nothing_is_left_over() {
        assert_eq!(shares(100, &[(1000, 1.0), (1000, 1.0)]), [50, 50]);
        assert_eq!(shares(100, &[(1000, 4.0), (1000, 1.0)]), [80, 20]);
        assert_eq!(shares(100, &[(10, 1.0), (1000, 1.0), (1000, 1.0)]), [10, 45, 45]);
        assert_eq!(shares(100, &[(10, 4.0), (60, 1.0)]), [10, 60], "no more than is wanted");
        assert_eq!(shares(0, &[]), [0; 0]);
    }

    #[test]
    fn everyone_gets_a_token() {
        assert_eq!(shares(3, &[(9, 1e6), (9, 1.0), (9, 1.0)]), [1, 1, 1]);
        assert_eq!(shares(10, &[(9, 1e6), (9, 1.0), (9, 1.0)]), [8, 1, 1]);
    }
}
