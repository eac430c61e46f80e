//! Who waits for a slot, and who is next: the urgent more often, and within a priority one user after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::request::Priority;

/// Whose turn a sequence takes: its user's, or where nobody says, its request's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    User(Arc<str>),
    Request(u64),
}

/// Where a sequence stands among others.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub owner: Owner,
    pub priority: Priority,
    /// Which of the model's adapters it runs with.
    pub adapter: Option<usize>,
}

/// Those who wait. Of the places that become free, a priority gets its weight's share, as long as someone waits in it
/// (stride scheduling); within it, owners take turns, and each owner's are served in the order they came.
pub(super) struct Queue<T> {
    classes: [Class<T>; 3],
    /// The pass of whoever was served last.
    now: u64,
    len: usize,
}

struct Class<T> {
    /// When the class is due next: moves on by a stride with each one that is served.
    pass: u64,
    turns: VecDeque<Owner>,
    waiting: HashMap<Owner, VecDeque<T>>,
}

impl<T> Queue<T> {
    pub fn new() -> Self {
        let class = || Class { pass: 0, turns: VecDeque::new(), waiting: HashMap::new() };
        Self { classes: [class(), class(), class()], now: 0, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, place: &Place, item: T) {
        let class = &mut self.classes[place.priority as usize];
        if class.turns.is_empty() {
            // Nobody saves up turns while nobody waits.
            class.pass = class.pass.max(self.now + place.priority.stride());
        }
        self.len += 1;
        let waiting = class.waiting.entry(place.owner.clone()).or_default();
        if waiting.is_empty() {
            class.turns.push_back(place.owner.clone());
        }
        waiting.push_back(item);
    }

    /// Serves the next for whom there is a place. Those in front of it keep their turns.
    pub fn pop_if(&mut self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut order = Priority::ALL;
        order.sort_by_key(|priority| self.classes[*priority as usize].pass);
        for priority in order {
            let class = &mut self.classes[priority as usize];
            let next = |owner: &Owner| class.waiting.get(owner).and_then(VecDeque::front).is_some_and(&fits);
            let Some(at) = class.turns.iter().position(next) else { continue };
            self.now = class.pass;
            class.pass += priority.stride();
            let owner = class.turns.remove(at)?;
            let waiting = class.waiting.get_mut(&owner)?;
            let item = waiting.pop_front();
            if waiting.is_empty() {
                class.waiting.remove(&owner);
            } else {
                class.turns.push_back(owner);
            }
            self.len -= usize::from(item.is_some());
            return item;
        }
        None
    }

    /// Takes out those for whom `leaves` holds.
    pub fn take_out(&mut self, mut leaves: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for Class { turns, waiting, .. } in &mut self.classes {
            for items in waiting.values_mut() {
                if items.iter().any(&mut leaves) {
                    let (gone, stay): (VecDeque<T>, VecDeque<T>) =
                        std::mem::take(items).into_iter().partition(&mut leaves);
                    *items = stay;
                    out.extend(gone);
                }
            }
            waiting.retain(|_, items| !items.is_empty());
            turns.retain(|owner| waiting.contains_key(owner));
        }
        self.len -= out.len();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(owner: u64, priority: Priority) -> Place {
        Place { owner: Owner::Request(owner), priority, adapter: None }
    }

    fn next<T>(queue: &mut Queue<T>) -> Option<T> {
        queue.pop_if(|_| true)
    }

    fn order<T>(queue: &mut Queue<T>) -> Vec<T> {
        std::iter::from_fn(|| next(queue)).collect()
    }

    #[test]
    fn owners_take_turns_in_the_order_they_came() {
        let mut queue = Queue::new();
        for i in 0..4 {
            queue.push(&place(1, Priority::Normal), ('a', i));
        }
        let user = Place { owner: Owner::User("b".into()), priority: Priority::Normal, adapter: None };
        (0..2).for_each(|i| queue.push(&user, ('b', i)));
        queue.push(&place(3, Priority::Normal), ('c', 0));
        let expected = [('a', 0), ('b', 0), ('c', 0), ('a', 1), ('b', 1), ('a', 2), ('a', 3)];
        assert_eq!(order(&mut queue), expected);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_urgent_go_first_and_nobody_starves() {
        let mut queue = Queue::new();
        for i in 0..40 {
            queue.push(&place(i, Priority::Low), 'l');
        }
        for i in 0..40 {
            queue.push(&place(100 + i, Priority::Normal), 'n');
        }
        for i in 0..40 {
            queue.push(&place(200 + i, Priority::High), 'h');
        }
        let first: String = (0..42).filter_map(|_| next(&mut queue)).collect();
        assert_eq!(first, "hhhhnhhhhnhhhhnhhhhnlhhhhnhhhhnhhhhnhhhhnl");
        assert_eq!(queue.len(), 120 - 42);
        assert_eq!(order(&mut queue).len(), 120 - 42);
    }

    #[test]
    fn turns_are_not_saved_up() {
        let mut queue = Queue::new();
        for _ in 0..100 {
            queue.push(&place(0, Priority::Low), 'l');
            assert_eq!(next(&mut queue), Some('l'));
        }
        for i in 0..20 {
            queue.push(&place(i, Priority::Low), 'l');
            queue.push(&place(50 + i, Priority::High), 'h');
        }
        let first: String = (0..18).filter_map(|_| next(&mut queue)).collect();
        assert_eq!(first, "hhhhhhhhhhhhhhhhlh", "16 urgent ones for a low one, whatever came before");
    }

    #[test]
    fn who_has_no_place_holds_up_nobody_and_stays_in_front() {
        let mut queue = Queue::new();
        for (i, item) in [900, 10, 800, 20, 30].into_iter().enumerate() {
            queue.push(&place(i as u64, Priority::Normal), item);
        }
        queue.push(&place(9, Priority::High), 700);
        let small = |item: &i32| *item < 100;
        assert_eq!([(); 4].map(|()| queue.pop_if(small)), [Some(10), Some(20), Some(30), None]);
        assert_eq!(order(&mut queue), [700, 900, 800]);
    }

    #[test]
    fn who_leaves_is_gone_and_the_others_keep_their_turns() {
        let mut queue = Queue::new();
        for i in 0..6 {
            queue.push(&place(i / 2, Priority::Normal), i);
        }
        let mut gone = queue.take_out(|i| [0, 2, 3].contains(i));
        gone.sort_unstable();
        assert_eq!((gone, queue.len()), (vec![0, 2, 3], 3));
        assert_eq!(order(&mut queue), [1, 4, 5]);
    }
}
