//! What a test does to the nodes of a cluster, wherever they run.

use watchpost::testing::{Cluster, Compose};

/// The nodes, as the cluster names them.
pub(crate) const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// A cluster whose nodes can be killed and started again.
pub(crate) trait Nodes {
    /// Where a node's monitoring pages are.
    async fn monitor_url(&self, name: &str) -> String;

    /// Kills it as a power cut would.
    async fn kill(&mut self, name: &str);

    /// Starts it again with the same data.
    async fn start(&mut self, name: &str);
}

impl Nodes for Cluster {
    async fn monitor_url(&self, name: &str) -> String {
        Self::monitor_url(self, number(name))
    }

    async fn kill(&mut self, name: &str) {
        Self::kill(self, number(name)).unwrap();
    }

    async fn start(&mut self, name: &str) {
        self.restart(number(name)).await.unwrap();
    }
}

impl Nodes for Compose {
    async fn monitor_url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.port(name, 8222).await.unwrap())
    }

    async fn kill(&mut self, name: &str) {
        Self::kill(self, name).await.unwrap();
    }

    async fn start(&mut self, name: &str) {
        Self::start(self, name).await.unwrap();
    }
}

fn number(name: &str) -> usize {
    NAMES.iter().position(|node| *node == name).unwrap()
}
