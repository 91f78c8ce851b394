//! Connections that do not grow old.
use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector},
    orchestrator::HttpRequest,
};
use tokio::time::Instant;

/// How long connections are used anew. What is left of a call in a connection's buffers (HTTP's, and below them those of
/// TLS) is wiped with it; a connection that is never idle would keep the end of a long answer for as long as shorter
/// ones follow. A handshake every half minute costs nothing that anybody waits for.
const LIFE: Duration = Duration::from_secs(30);

/// A pool of connections, and what makes the next one. Calls that are under way keep their pool to their end.
pub(super) struct ShortLived {
    make: Box<dyn Fn() -> SharedHttpConnector + Send + Sync>,
    current: Mutex<(Instant, SharedHttpConnector)>,
}

impl ShortLived {
    pub(super) fn new(make: impl Fn() -> SharedHttpConnector + Send + Sync + 'static) -> Self {
        let current = Mutex::new((Instant::now(), make()));
        Self { make: Box::new(make), current }
    }

    fn current(&self) -> SharedHttpConnector {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, connector) = &mut *current;
        if made.elapsed() >= LIFE {
            (*made, *connector) = (Instant::now(), (self.make)());
        }
        connector.clone()
    }
}

impl fmt::Debug for ShortLived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShortLived").finish_non_exhaustive()
    }
}

impl HttpConnector for ShortLived {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        self.current().call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Weak};

    use super::*;

    #[derive(Debug)]
    struct Pool(#[expect(dead_code, reason = "tells whether the pool is there")] Arc<()>);

    impl HttpConnector for Pool {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            unreachable!("nobody calls")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_used_for_a_while_and_then_dropped_with_its_last_call() {
        let made: Arc<Mutex<Vec<Weak<()>>>> = Arc::default();
        let pools = ShortLived::new({
            let made = Arc::clone(&made);
            move || {
                let alive = Arc::new(());
                made.lock().unwrap().push(Arc::downgrade(&alive));
                SharedHttpConnector::new(Pool(alive))
            }
        });
        let alive = || made.lock().unwrap().iter().map(|pool| pool.strong_count() > 0).collect::<Vec<_>>();
        let almost = LIFE.saturating_sub(Duration::from_millis(1));
        tokio::time::advance(almost).await;
        let under_way = pools.current();
        assert_eq!(alive(), [true]);
        tokio::time::advance(Duration::from_millis(1)).await;
        drop(pools.current());
        assert_eq!(alive(), [true, true], "a call lost its connection");
        drop(under_way);
        assert_eq!(alive(), [false, true]);
    }
}
