//! A real system is watched by an observer, and a test says what it expects of it: nobody loops, nobody polls, nobody sleeps.
//!
//! The system is a cluster of three NATS nodes, which agree by Raft. It runs as local processes and, where Docker works, as the services of
//! `docker/cluster.compose.yml`; the story is one. The same nodes also carry Watchpost itself, in containers: `docker/workers.compose.yml`
//! (as local processes: `tests/faults/cluster.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod nodes;
mod story;
mod workers;

#[allow(dead_code, unreachable_pub, reason = "written for every program that uses it as a module of its own")]
#[path = "../../examples/observers/raft.rs"]
mod raft;

use tokio::process::Command;
use watchpost::testing::{Cluster, Compose, not_run};

#[tokio::test(flavor = "multi_thread")]
async fn local_processes_agree_on_another_leader_when_theirs_is_killed_and_on_it_with_the_one_that_comes_back()
 {
    story::a_leader_is_killed_and_comes_back(Cluster::start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_agree_on_another_leader_when_theirs_is_killed_and_on_it_with_the_one_that_comes_back() {
    if let Some(cluster) = compose(NODES).await {
        story::a_leader_is_killed_and_comes_back(cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_networks_are_gone_when_the_test_that_started_them_has_failed() {
    let Some(cluster) = compose(NODES).await else { return };
    let project = cluster.project().to_owned();
    assert_eq!(left_of(&project).await.len(), 4, "three nodes and a network");
    let failed = tokio::spawn(async move {
        cluster.port("n1", 1).await.expect("the node publishes no such port");
    });
    assert!(failed.await.unwrap_err().is_panic());
    assert_eq!(left_of(&project).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_whichever_container_of_its_cluster_dies_is_cut_off_or_restarted() {
    let image = image();
    if !has_image(&image).await {
        not_run(&format!("{WORKERS}: Docker has no image {image}; `make image` builds watchpost:latest"))
            .unwrap();
    } else if let Some(cluster) = compose(WORKERS).await {
        Box::pin(workers::any_container_may_fail(&cluster)).await;
    }
}

const NODES: &str = "docker/cluster.compose.yml";
const WORKERS: &str = "docker/workers.compose.yml";

async fn compose(file: &str) -> Option<Compose> {
    if let Err(why) = Compose::is_there().await {
        not_run(&format!("{file}: {why}")).unwrap();
        return None;
    }
    Some(Compose::up(file).await.unwrap())
}

/// The image of the workers, as the compose file chooses it.
fn image() -> String {
    let named = std::env::var("WATCHPOST_IMAGE").unwrap_or_default();
    if named.is_empty() { "watchpost:latest".to_owned() } else { named }
}

async fn has_image(name: &str) -> bool {
    let asked = Command::new("docker").args(["image", "inspect", name]).output().await;
    asked.is_ok_and(|answer| answer.status.success())
}

/// The containers, networks and volumes that Docker has of a project.
async fn left_of(project: &str) -> Vec<String> {
    let label = format!("label=com.docker.compose.project={project}");
    let mut left = Vec::new();
    for list in [&["ps", "--all"] as &[&str], &["network", "ls"], &["volume", "ls"]] {
        let docker =
            Command::new("docker").args(list).args(["--quiet", "--filter", &label]).output().await.unwrap();
        assert!(docker.status.success(), "{}", String::from_utf8_lossy(&docker.stderr));
        left.extend(String::from_utf8(docker.stdout).unwrap().lines().map(str::to_owned));
    }
    left
}
