//! Shows on a real cluster that the stand-in behaves as KubeVirt, CDI and Wukong were seen to behave, and that the
//! judge sees on real disks what it is for.
//!
//! One test, since one cluster costs ten seconds and a gigabyte: n2 loses its power at the beginning, and while
//! Kubernetes takes its time to notice (46.7 s were measured), the rest happens on n1 and n3.

mod bed;
mod death;
mod disks;
mod imports;
mod live;
mod strategies;
mod wukong;

use anyhow::Result;
use somersault_test_cluster::usable_or_skip;

use bed::Bed;

#[test]
fn the_stand_in_behaves_as_the_originals() -> Result<()> {
    if !usable_or_skip("the_stand_in_behaves_as_the_originals") {
        return Ok(());
    }
    let bed = Bed::up()?;
    death::lose_power(&bed)?;
    wukong::begin(&bed)?;
    imports::begin(&bed)?;
    live::begin(&bed)?;
    disks::begin(&bed)?;
    strategies::each(&bed)?;
    live::migrating_and_paused(&bed)?;
    disks::locked_and_forbidden(&bed)?;
    imports::handshake_and_trap(&bed)?;
    wukong::habits(&bed)?;
    death::two_at_once(&bed)?;
    death::nobody_acts_on_lost_power(&bed)?;
    death::the_api_server_is_away(&bed)
}
