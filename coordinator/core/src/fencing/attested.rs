//! People's words that a node is dead, and which of them count.
//!
//! ```text
//!   there when we first looked ──► left over
//!   given while the node is silent ──► counts ── a beat ──► left over, for good
//!   given while it beats ──────────────────────────────► left over
//! ```
//!
//! A word stays in the node's object, and the node may fall silent a week later in the same boot, alive, with a word about
//! just that boot lying there. Only a word that we saw given to a silent node was about that silence. One that is left over
//! is said again, which is another word: it has another time.

use std::collections::BTreeMap;

use crate::io::{Attestation, Requests};
use crate::names::{BootId, NodeName};

/// Every word that is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attested {
    looked: bool,
    words: BTreeMap<NodeName, Word>,
}

#[derive(Clone, Debug)]
struct Word {
    text: Attestation,
    counts: bool,
}

impl Attested {
    /// The requests were read anew.
    pub fn read(&mut self, requests: &Requests, beats: impl Fn(&NodeName) -> bool) {
        self.words.retain(|node, _| requests.attestations.contains_key(node));
        for (node, text) in &requests.attestations {
            if self.words.get(node).is_none_or(|word| word.text != *text) {
                let counts = self.looked && !beats(node);
                self.words.insert(node.clone(), Word { text: text.clone(), counts });
            }
        }
        self.looked = true;
    }

    /// The node beats: what was said of it is not so.
    pub fn beats(&mut self, node: &NodeName) {
        if let Some(word) = self.words.get_mut(node) {
            word.counts = false;
        }
    }

    /// Whether a person's word proves the death of this boot.
    pub fn proves(&self, node: &NodeName, boot: Option<&BootId>) -> bool {
        self.about(node, boot).is_some_and(|word| word.counts)
    }

    /// Who gave a word about this boot that does not count.
    pub fn left_over(&self, node: &NodeName, boot: Option<&BootId>) -> Option<&str> {
        self.about(node, boot).filter(|word| !word.counts).map(|word| word.text.by.as_str())
    }

    fn about(&self, node: &NodeName, boot: Option<&BootId>) -> Option<&Word> {
        self.words.get(node).filter(|word| Some(&word.text.boot_id) == boot)
    }
}
