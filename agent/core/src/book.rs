//! The book of orders: which one is new, which one is known, which one is refused.
//!
//! ```text
//!   admit --new id--> Start ---- note(running)* ---- close(done or failed)
//!     |--known id---> Repeat(its last state): a repeated order is answered, never done twice
//!     '--refused----> Refused: too many at once
//! ```
//!
//! Whether its sender may give orders at all is [`Lease::admit`](crate::lease::Lease::admit)'s to say, before.

use std::collections::{BTreeMap, VecDeque};

/// Orders under way at once. A coordinator moves a few volumes of a node at a time; hundreds are a mistake.
const OPEN_MAX: usize = 64;
/// Closed orders whose outcome is remembered, for a coordinator that lost the answer. An outcome is asked for
/// within minutes; a coordinator that asks later starts the same work again, which is idempotent.
const CLOSED_MAX: usize = 1024;
/// Longest order id: a Kubernetes object name and then some.
const ID_BYTES_MAX: usize = 512;

/// Orders by id, each with its last state.
#[derive(Clone, Debug)]
pub struct Book<S> {
    open: BTreeMap<String, S>,
    closed: BTreeMap<String, S>,
    /// Ids of `closed`, oldest first.
    order_of_closing: VecDeque<String>,
}

/// What to do with an order that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission<S> {
    /// New: do it.
    Start,
    /// Known: answer with this.
    Repeat(S),
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many at once.
    #[error("{OPEN_MAX} orders are under way on this node already; send it again when one has ended")]
    TooManyOrders,
    /// No usable id.
    #[error("an order id has 1 to {ID_BYTES_MAX} bytes")]
    InvalidId,
}

impl<S> Default for Book<S> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), closed: BTreeMap::new(), order_of_closing: VecDeque::new() }
    }
}

impl<S: Clone> Book<S> {
    /// Takes an order that has arrived; a new one is open with `initial` from now on.
    pub fn admit(&mut self, id: &str, initial: S) -> Result<Admission<S>, Refusal> {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(Refusal::InvalidId);
        }
        if let Some(state) = self.open.get(id).or_else(|| self.closed.get(id)) {
            return Ok(Admission::Repeat(state.clone()));
        }
        if self.open.len() >= OPEN_MAX {
            return Err(Refusal::TooManyOrders);
        }
        self.open.insert(id.to_owned(), initial);
        Ok(Admission::Start)
    }

    /// Notes how an open order fares; false where it is not open.
    pub fn note(&mut self, id: &str, state: S) -> bool {
        self.open.get_mut(id).map(|entry| *entry = state).is_some()
    }

    /// Notes how an open order ended.
    pub fn close(&mut self, id: &str, state: S) {
        if self.open.remove(id).is_none() {
            return;
        }
        if self.order_of_closing.len() == CLOSED_MAX
            && let Some(oldest) = self.order_of_closing.pop_front()
        {
            self.closed.remove(&oldest);
        }
        self.order_of_closing.push_back(id.to_owned());
        self.closed.insert(id.to_owned(), state);
    }

    /// Orders under way, with their last states.
    pub fn open(&self) -> impl Iterator<Item = (&str, &S)> {
        self.open.iter().map(|(id, state)| (id.as_str(), state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(book: &mut Book<&'static str>, id: &str) -> Result<Admission<&'static str>, Refusal> {
        book.admit(id, "started")
    }

    #[test]
    fn a_repeated_order_is_answered_by_its_state_and_not_started_again() {
        let mut book = Book::default();
        assert_eq!(admit(&mut book, "a"), Ok(Admission::Start));
        assert_eq!(admit(&mut book, "a"), Ok(Admission::Repeat("started")));
        assert!(book.note("a", "half"));
        assert_eq!(admit(&mut book, "a"), Ok(Admission::Repeat("half")));
        book.close("a", "done");
        assert_eq!(admit(&mut book, "a"), Ok(Admission::Repeat("done")));
        assert!(!book.note("a", "again"), "a closed order does not come back");
    }

    #[test]
    fn only_so_many_at_once_and_only_so_much_memory() {
        let mut book = Book::default();
        for n in 0..OPEN_MAX {
            admit(&mut book, &format!("open-{n}")).expect("admitted");
        }
        assert_eq!(admit(&mut book, "one-more"), Err(Refusal::TooManyOrders));
        book.close("open-0", "done");
        assert_eq!(admit(&mut book, "one-more"), Ok(Admission::Start));
        for n in 0..2 * CLOSED_MAX {
            book.close("one-more", "done");
            let id = format!("more-{n}");
            admit(&mut book, &id).expect("admitted");
            book.close(&id, "done");
        }
        assert_eq!((book.closed.len(), book.order_of_closing.len()), (CLOSED_MAX, CLOSED_MAX));
    }

    #[test]
    fn ids_are_checked() {
        let mut book = Book::default();
        assert_eq!(admit(&mut book, ""), Err(Refusal::InvalidId));
        assert_eq!(admit(&mut book, &"x".repeat(ID_BYTES_MAX + 1)), Err(Refusal::InvalidId));
    }
}
