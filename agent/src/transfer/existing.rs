//! A volume of unknown origin under the final name: is it what the copy would be?

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use somersault_agent_core::transfer::{AcceptError, CHUNK_BYTES, Entry, Held, Kind, Manifest, Session};

use super::TransferError;
use super::copying::Files;
use super::io::Pool;
use super::meter::Meter;
use super::peer::Peer;
use super::root::Place;
use super::target::{is_blank, join};
use super::{scan, verify};

/// The root of the volume if it equals the source in all that a copy keeps. Nothing is written.
pub(super) async fn compare(
    peer: &Peer,
    place: &Arc<Place>,
    manifest: &Manifest,
    pool: &Pool,
    meter: &Meter,
) -> Result<Option<[u8; 32]>, TransferError> {
    let (place, pool, is_mounted) = (place.clone(), pool.clone(), place.is_mounted());
    let look = tokio::task::spawn_blocking(move || {
        let volume =
            place.open().map_err(|error| TransferError::target("cannot open", place.display(), error))?;
        Ok((scan::scan(volume.as_fd(), place.top()).ok(), Arc::new(Files::new(volume, pool))))
    });
    let (Some(here), files) = join(look.await)? else { return Ok(None) };
    let (mut ours, theirs) = (here.manifest.entries(), || manifest.entries());
    // What a copy into a mounted volume leaves out is not missed there.
    let mut copied = theirs().filter(|entry| !is_mounted || !is_blank(entry, manifest));
    let alike = ours.all(|ours| copied.next().is_some_and(|theirs| look_alike(&ours, &theirs)));
    if !alike || copied.next().is_some() {
        return Ok(None);
    }
    let mut ours = here.manifest.entries().peekable();
    let held = theirs().map(|entry| {
        // What is left out here has no content.
        let here = ours.next_if(|ours| ours.path == entry.path).filter(|ours| ours.kind == Kind::Regular);
        here.map_or_else(|| Held::fresh(0), |entry| held_as_listed(&entry))
    });
    let mut session = Session::begin(manifest.clone(), held.collect(), false);
    for (file, entry) in theirs().enumerate().filter(|(_, entry)| entry.kind == Kind::Regular) {
        verify::learn(&files, &mut session, file, meter).await?;
        compare_leaves(peer, &mut session, file, &entry.data, meter).await?;
    }
    Ok(session.is_complete().then(|| session.root()))
}

/// What a file holds, by the word of its filesystem.
fn held_as_listed(entry: &Entry) -> Held {
    let mut held = Held::unknown(entry.size_bytes);
    let mut at = 0;
    for range in entry.data.iter() {
        held.holes(at..range.start);
        at = range.end;
    }
    held.holes(at..entry.chunks());
    held
}

/// Takes the source's leaves of chunks of one file.
async fn compare_leaves(
    peer: &Peer,
    session: &mut Session,
    file: usize,
    chunks: &[Range<u64>],
    meter: &Meter,
) -> Result<(), TransferError> {
    let Some(size_bytes) = session.held(file).map(Held::size_bytes) else { return Ok(()) };
    let mut hashes = peer.hashes(file, session.manifest().identity(), size_bytes, chunks).await?;
    while let Some((first, leaves)) = hashes.next(size_bytes).await? {
        meter.worked(leaves.len() as u64 * CHUNK_BYTES);
        session
            .compare(file, first, &leaves)
            .map_err(|error: AcceptError| TransferError::SourceInvalid(error.to_string()))?;
    }
    Ok(())
}

fn look_alike(ours: &Entry, theirs: &Entry) -> bool {
    ours.path == theirs.path
        && ours.kind == theirs.kind
        && ours.size_bytes == theirs.size_bytes
        && ours.metadata == theirs.metadata
        && ours.extra == theirs.extra
}
