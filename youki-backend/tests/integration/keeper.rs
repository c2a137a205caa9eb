//! The keeper follows every container of its root, whoever started it.

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{eventually, seen_root, soon};
use crate::support::root::Root;
use crate::volumes::spec;

crate::tests![what_another_process_started_is_synced_when_that_process_is_dead];

async fn what_another_process_started_is_synced_when_that_process_is_dead(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let keeper = root.open().await.unwrap();
    let other = Root { keeper: false, ..root.clone() };
    let id = case.id_on(&keeper);
    let generation = async || keeper.volume_status("data").await.ok().and_then(|status| status.generation);

    let mut agent = Agent::start(&other, &[]).await;
    let script = "until [ -e /end ]; do sleep 0.05; done; rm /end; echo by itself >> /data/file";
    let spec = Box::new(spec(&case, script).await);
    agent.ask(&Request::Run { id: id.clone(), spec }).await.unwrap();
    let before = generation().await;
    agent.kill().await;
    let end = async || std::fs::write(seen_root(&*keeper, &id).await.join("end"), "").unwrap();
    end().await;
    assert_eq!(soon("it ends", keeper.wait_container(&id)).await, Ok(0));
    eventually("the keeper synced it", || async {
        let status = keeper.volume_status("data").await.unwrap();
        status.durable_at.is_some() && status.generation > before
    })
    .await;

    // Its next attempt, by one more process.
    let mut agent = Agent::start(&other, &[]).await;
    let before = generation().await;
    agent.ask(&Request::Start { id: id.clone() }).await.unwrap();
    agent.kill().await;
    end().await;
    assert_eq!(soon("it ends again", keeper.wait_container(&id)).await, Ok(0));
    eventually("the keeper synced that as well", || async { generation().await > before }).await;
    keeper.remove_container(&id).await.unwrap();
}
