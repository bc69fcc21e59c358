//! The writing half of the cluster `kube` against a real API server with its real controllers: each action done, done
//! again and refused; records that two writers want; statuses that leave records alone; Events as `kubectl` shows them.
//!
//! One test, since one cluster costs ten seconds and a gigabyte.

mod bed;
mod claims;
mod data_volumes;
mod guard;
mod jobs;
mod lock;
mod nodes;
mod pods;
mod proof;
mod quotas;
mod records;
mod requests;
mod shown;
mod told;
mod vms;

use std::time::Instant;

use anyhow::{Result, ensure};
use somersault_test_cluster::usable_or_skip;

use crate::bed::Bed;

#[test]
fn an_api_server_holds_what_we_write_and_refuses_what_it_must() -> Result<()> {
    if !usable_or_skip("an_api_server_holds_what_we_write_and_refuses_what_it_must") {
        return Ok(());
    }
    let cluster = bed::up()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let bed = &Bed::on(cluster).await?;
        let mut failed = 0;
        failed += step("taints", Box::pin(nodes::taints(bed))).await;
        failed += step("taints while others write", Box::pin(nodes::taints_while_others_write(bed))).await;
        failed += step("pods", Box::pin(pods::deletions(bed))).await;
        failed += step("requests", Box::pin(requests::made_once(bed))).await;
        failed += step("live migrations", Box::pin(requests::asked_of_kubevirt(bed))).await;
        failed += step("swap", Box::pin(claims::a_swap_and_back(bed))).await;
        failed += step("claims that do not fit", Box::pin(claims::what_does_not_fit(bed))).await;
        failed += step("shared volumes", Box::pin(claims::a_shared_volume(bed))).await;
        failed += step("a locked claim", Box::pin(lock::of_a_claim(bed))).await;
        failed += step("DataVolumes", Box::pin(data_volumes::handshake(bed))).await;
        failed += step("VMs", Box::pin(vms::stopped_and_given_back(bed))).await;
        failed += step("Wukongs", Box::pin(vms::wukongs_to_the_byte(bed))).await;
        failed += step("quotas", Box::pin(quotas::before_a_vm_is_stopped(bed))).await;
        failed += step("Jobs of users", Box::pin(jobs::that_look_at_a_guest(bed))).await;
        failed += step("records", Box::pin(records::come_back_as_stored(bed))).await;
        failed += step("records of others", Box::pin(records::are_not_overwritten(bed))).await;
        failed += step("records of a rebuild", Box::pin(records::of_a_rebuild(bed))).await;
        failed += step("two writers", Box::pin(records::of_two_writers(bed))).await;
        failed += step("records that make no sense", Box::pin(records::that_make_no_sense(bed))).await;
        failed += step("statuses", Box::pin(shown::beside_records(bed))).await;
        failed += step("statuses and records at once", Box::pin(shown::while_records_are_stored(bed))).await;
        failed += step("recoveries", Box::pin(shown::recoveries(bed))).await;
        failed += step("progress", Box::pin(shown::migrations_and_evacuations(bed))).await;
        failed += step("a thousand nodes", Box::pin(shown::a_thousand_nodes(bed))).await;
        failed += step("records and other writers", Box::pin(guard::of_records(bed))).await;
        failed += step("events", Box::pin(told::events(bed))).await;
        failed += step("an API server that is away", Box::pin(bed::away(bed))).await;
        ensure!(failed == 0, "{failed} steps failed, see above");
        Ok(())
    })
}

/// One step; the others go on without it, so that one run tells all. Returns how many have failed.
async fn step(name: &str, body: impl Future<Output = Result<()>>) -> u32 {
    let began = Instant::now();
    let result = body.await;
    let seconds = began.elapsed().as_secs_f32();
    match result {
        Ok(()) => {
            eprintln!("== {name}: {seconds:.1} s");
            0
        }
        Err(error) => {
            eprintln!("== {name}: FAILED after {seconds:.1} s: {error:#}");
            1
        }
    }
}
