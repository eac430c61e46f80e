//! States after the beginnings that prompts share, in a radix tree over token ids.
//!
//! Every prompt leaves its path in the tree. Where a later one parts from it, the two share a beginning, and the state
//! there is kept from then on, so the third prompt that begins so does not compute it again. Paths and states together
//! take no more than a budget of bytes; what was used least recently goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Tokens of a beginning that is worth a state.
const LEAST: usize = 16;
/// Bytes of a node without its ids and its state, about.
const NODE: u64 = 160;
const ROOT: usize = 0;

/// Where a state lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kept {
    /// In a slot of the device that no sequence uses.
    Slot(usize),
    /// In the host's memory.
    Host(Arc<[f32]>),
}

/// What the tree knows of a prompt.
#[derive(Debug, PartialEq)]
pub(super) struct Found {
    /// The state after the longest beginning of which one is kept, and that beginning's length.
    pub state: Option<(usize, Kept)>,
    /// How long the beginning is that it shares with an earlier prompt, if its state should be kept.
    pub shared: Option<usize>,
}

/// The tree.
pub(super) struct Prefixes {
    budget: u64,
    state_bytes: u64,
    /// A freed one is empty, and in `holes`.
    nodes: Vec<Node>,
    holes: Vec<usize>,
    /// Nodes that can go (they have a state or no children), by when they were last used.
    order: BTreeMap<u64, usize>,
    clock: u64,
    bytes: u64,
    states: usize,
    /// Slots that nothing is kept in.
    free: Vec<usize>,
}

#[derive(Default)]
struct Node {
    parent: usize,
    /// Ids from the parent to here.
    edge: Vec<u32>,
    /// By the first id of their edges.
    children: HashMap<u32, usize>,
    state: Option<Kept>,
    /// Its key in `order`, if it is there.
    used: u64,
}

impl Prefixes {
    /// A tree for states of `state_bytes` each, which may lie in the `slots`.
    pub fn new(budget: u64, state_bytes: u64, slots: Vec<usize>) -> Self {
        Self {
            budget,
            state_bytes,
            nodes: vec![Node::default()],
            holes: Vec::new(),
            order: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            states: 0,
            free: slots,
        }
    }

    /// Bytes of all paths and states.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.states
    }

    /// Looks a prompt up and leaves its path.
    pub fn look_up(&mut self, ids: &[u32]) -> Found {
        let (mut at, mut depth, mut state) = (ROOT, 0, None);
        let mut shared = loop {
            let Some(&child) = ids.get(depth).and_then(|id| self.nodes[at].children.get(id)) else {
                break depth;
            };
            let common = common(&self.nodes[child].edge, &ids[depth..]);
            if common < self.nodes[child].edge.len() {
                break depth + common;
            }
            (at, depth) = (child, depth + common);
            if let Some(kept) = &self.nodes[at].state {
                state = Some((depth, kept.clone()));
            }
            self.touch(at);
        };
        let known = state.as_ref().map_or(0, |(depth, _)| *depth);
        if shared < known + LEAST {
            shared = 0;
        }
        self.node_at(ids);
        self.make_room();
        Found { state, shared: (shared > 0).then_some(shared) }
    }

    /// Whether the state after these ids is kept.
    pub fn has(&self, ids: &[u32]) -> bool {
        let (mut at, mut depth) = (ROOT, 0);
        while depth < ids.len() {
            let Some(&child) = self.nodes[at].children.get(&ids[depth]) else { return false };
            let edge = &self.nodes[child].edge;
            if !ids[depth..].starts_with(edge) {
                return false;
            }
            (at, depth) = (child, depth + edge.len());
        }
        self.nodes[at].state.is_some()
    }

    /// A slot to keep a state in: a free one; or the one that was used least recently, whose state `spill` copies into
    /// the host's memory. `None` where there are no slots.
    pub fn slot<E>(&mut self, spill: impl FnOnce(usize) -> Result<Vec<f32>, E>) -> Result<Option<usize>, E> {
        if let Some(slot) = self.free.pop() {
            return Ok(Some(slot));
        }
        let oldest = self.order.values().find_map(|node| match self.nodes[*node].state {
            Some(Kept::Slot(slot)) => Some((*node, slot)),
            _ => None,
        });
        let Some((node, slot)) = oldest else { return Ok(None) };
        self.nodes[node].state = Some(Kept::Host(spill(slot)?.into()));
        Ok(Some(slot))
    }

    /// Keeps the state after these ids.
    pub fn keep(&mut self, ids: &[u32], state: Kept) {
        let node = self.node_at(ids);
        match self.nodes[node].state.replace(state) {
            Some(Kept::Slot(slot)) => self.free.push(slot),
            Some(Kept::Host(_)) => {}
            None => {
                self.states += 1;
                self.bytes += self.state_bytes;
            }
        }
        self.touch(node);
        self.make_room();
    }

    /// The node after these ids, made if it is not there, and touched.
    fn node_at(&mut self, ids: &[u32]) -> usize {
        let (mut at, mut depth) = (ROOT, 0);
        while depth < ids.len() {
            at = match self.nodes[at].children.get(&ids[depth]) {
                None => {
                    let new = self.add(at, &ids[depth..]);
                    depth = ids.len();
                    new
                }
                Some(&child) => {
                    let common = common(&self.nodes[child].edge, &ids[depth..]);
                    depth += common;
                    if common < self.nodes[child].edge.len() { self.split(child, common) } else { child }
                }
            };
        }
        self.touch(at);
        at
    }

    fn add(&mut self, parent: usize, edge: &[u32]) -> usize {
        let node = Node { parent, edge: edge.to_vec(), ..Node::default() };
        let at = match self.holes.pop() {
            Some(hole) => {
                self.nodes[hole] = node;
                hole
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.insert(edge[0], at);
        self.bytes += NODE + 4 * edge.len() as u64;
        if self.nodes[parent].state.is_none() {
            self.order.remove(&self.nodes[parent].used); // it has a child now
        }
        at
    }

    /// Puts a node into the middle of an edge, `length` ids from its beginning.
    fn split(&mut self, child: usize, length: usize) -> usize {
        let (parent, rest) = (self.nodes[child].parent, self.nodes[child].edge.split_off(length));
        let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
        self.bytes -= 4 * edge.len() as u64; // counted again by `add`
        let middle = self.add(parent, &edge);
        let first = self.nodes[child].edge[0];
        self.nodes[child].parent = middle;
        self.nodes[middle].children.insert(first, child);
        middle
    }

    fn touch(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        self.order.remove(&node.used);
        if at != ROOT && (node.state.is_some() || node.children.is_empty()) {
            self.clock += 1;
            node.used = self.clock;
            self.order.insert(self.clock, at);
        }
    }

    fn make_room(&mut self) {
        while self.bytes > self.budget {
            let Some((_, at)) = self.order.pop_first() else { return };
            if let Some(state) = self.nodes[at].state.take() {
                if let Kept::Slot(slot) = state {
                    self.free.push(slot);
                }
                self.states -= 1;
                self.bytes -= self.state_bytes;
            }
            if self.nodes[at].children.is_empty() {
                self.remove(at);
            }
        }
    }

    /// Takes a node without children out, and those above that only led to it: what they led to was older than all else.
    fn remove(&mut self, mut at: usize) {
        loop {
            let Node { parent, edge, used, .. } = std::mem::take(&mut self.nodes[at]);
            self.order.remove(&used);
            self.holes.push(at);
            self.bytes -= NODE + 4 * edge.len() as u64;
            let above = &mut self.nodes[parent];
            above.children.remove(&edge[0]);
            if parent == ROOT || !above.children.is_empty() || above.state.is_some() {
                return;
            }
            at = parent;
        }
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: u64 = 10_000;

    fn prompt(shared: u32, own: u32) -> Vec<u32> {
        (0..shared).chain((0..20).map(|i| 1000 * own + i)).collect()
    }

    fn host(x: f32) -> Kept {
        Kept::Host(vec![x].into())
    }

    #[test]
    fn what_two_prompts_share_is_kept_for_the_third() {
        let mut tree = Prefixes::new(1 << 20, STATE, Vec::new());
        assert_eq!(tree.look_up(&prompt(100, 1)), Found { state: None, shared: None });
        assert_eq!(tree.look_up(&prompt(100, 2)), Found { state: None, shared: Some(100) });
        tree.keep(&prompt(100, 2)[..100], host(1.0));
        assert!(tree.has(&prompt(100, 2)[..100]) && !tree.has(&prompt(100, 2)[..99]));
        assert!(!tree.has(&prompt(100, 2)));
        let found = tree.look_up(&prompt(100, 3));
        assert_eq!(found, Found { state: Some((100, host(1.0))), shared: None });
        // A prompt that comes again shares all of itself, and one that parts earlier shares less.
        assert_eq!(tree.look_up(&prompt(100, 3)).shared, Some(120));
        assert_eq!(tree.look_up(&prompt(50, 4)), Found { state: None, shared: Some(50) });
        assert_eq!(tree.look_up(&prompt(10, 5)), Found { state: None, shared: None }, "too short");
        // The longest of several.
        tree.keep(&prompt(100, 3), host(2.0));
        tree.keep(&prompt(100, 3)[..40], host(3.0));
        assert_eq!(tree.look_up(&prompt(100, 3)).state, Some((120, host(2.0))));
        assert_eq!(tree.look_up(&prompt(40, 6)).state, Some((40, host(3.0))));
    }

    #[test]
    fn the_least_recently_used_goes_and_the_bytes_add_up() {
        let mut tree = Prefixes::new(5 * STATE, STATE, Vec::new());
        for i in 0..50 {
            let ids = prompt(0, i);
            tree.look_up(&ids);
            tree.keep(&ids, host(i as f32));
            tree.look_up(&prompt(0, 0)); // used all the time
            assert!(tree.bytes() <= 5 * STATE);
        }
        assert!(tree.has(&prompt(0, 0)) && tree.has(&prompt(0, 49)) && !tree.has(&prompt(0, 1)));
        assert_eq!(tree.states(), 4);
        tree.budget = 0;
        tree.make_room();
        assert_eq!((tree.bytes(), tree.states(), tree.order.len()), (0, 0, 0));
        assert!(tree.nodes[ROOT].children.is_empty());
        assert_eq!(tree.holes.len() + 1, tree.nodes.len());
    }

    #[test]
    fn slots_are_used_first_and_the_oldest_is_spilled() {
        let mut tree = Prefixes::new(1 << 20, STATE, vec![7, 8]);
        let mut spilled = Vec::new();
        for i in 0..3 {
            let spill = |slot| {
                spilled.push(slot);
                Ok::<_, ()>(vec![slot as f32])
            };
            let slot = tree.slot(spill).unwrap().unwrap();
            tree.keep(&prompt(0, i), Kept::Slot(slot));
            tree.look_up(&prompt(0, 0));
        }
        assert_eq!(spilled, [7], "that of the second prompt");
        assert_eq!(tree.look_up(&prompt(0, 1)).state, Some((20, host(7.0))));
        assert_eq!(tree.look_up(&prompt(0, 0)).state, Some((20, Kept::Slot(8))));
        tree.budget = 0;
        tree.make_room();
        tree.free.sort_unstable();
        assert_eq!(tree.free, [7, 8]);
        assert_eq!(Prefixes::new(9, 9, Vec::new()).slot(|_| Err(())), Ok(None));
    }

    /// Against a plain list, on random prompts of few different ids.
    #[test]
    fn random_prompts() {
        let mut random = 1u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let mut tree = Prefixes::new(u64::MAX, STATE, Vec::new());
        let (mut seen, mut kept): (Vec<Vec<u32>>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
        for i in 0..400 {
            let ids: Vec<u32> = (0..1 + below(60)).map(|_| u32::from(below(12) == 0)).collect();
            let longest = kept.iter().filter(|of| ids.starts_with(of)).map(Vec::len).max();
            let shared = seen.iter().map(|of| common(of, &ids)).max().unwrap_or(0);
            let found = tree.look_up(&ids);
            assert_eq!(found.state.as_ref().map(|(depth, _)| *depth), longest, "prompt {i}");
            let worth = shared >= longest.unwrap_or(0) + LEAST;
            assert_eq!(found.shared, worth.then_some(shared), "prompt {i}");
            if let Some(shared) = found.shared {
                tree.keep(&ids[..shared], host(i as f32));
                kept.push(ids[..shared].to_vec());
            }
            seen.push(ids);
        }
        assert!(kept.len() > 20, "{}", kept.len());
        assert_eq!(tree.states(), kept.len());
        let inner: u64 = tree.nodes[1..].iter().map(|node| NODE + 4 * node.edge.len() as u64).sum();
        assert_eq!(tree.bytes(), inner + STATE * kept.len() as u64);
    }
}
