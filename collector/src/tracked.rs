//! Futures whose work is counted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::account::Account;
use crate::imports::NO_IMPORT;
use crate::mark;

pin_project! {
    /// A future that counts on an account what its polls make the kernel do, on whichever threads it is polled.
    ///
    /// What it leaves to other threads (a blocking pool) is not in it: hand the account over and use [`Account::enter`] there.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Tracked<F> {
        #[pin]
        inner: F,
        account: Arc<Account>,
    }
}

impl<F> Tracked<F> {
    /// Wraps `inner`.
    pub fn new(inner: F, account: Arc<Account>) -> Self {
        Self { inner, account }
    }

    /// The account that is counted on.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _mark = mark::begin(this.account, NO_IMPORT);
        this.inner.poll(cx)
    }
}
