//! Changes of the kernel's that wait for their turn and are then made in one piece: when a host is drained, there are
//! hundreds at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Changes of one kind.
pub struct Together<T> {
    /// In order; each is told when another's turn has made it.
    waiting: Mutex<Vec<(T, oneshot::Sender<()>)>>,
    turn: tokio::sync::Mutex<()>,
}

impl<T: Clone> Together<T> {
    pub const fn new() -> Self {
        Self { waiting: Mutex::new(Vec::new()), turn: tokio::sync::Mutex::const_new(()) }
    }

    /// Nothing is changed while this is held.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(T, oneshot::Sender<()>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, and all that wait with it. Where one of them is refused, each is made alone.
    pub async fn make<E>(&self, change: T, apply: impl AsyncFn(&[T]) -> Result<(), E>) -> Result<(), E> {
        let (done, mut made) = oneshot::channel();
        self.waiting().push((change.clone(), done));
        let _turn = self.turn.lock().await;
        match made.try_recv() {
            Ok(()) => return Ok(()),
            Err(oneshot::error::TryRecvError::Empty) => {
                let together = std::mem::take(&mut *self.waiting());
                let changes: Vec<T> = together.iter().map(|(change, _)| change.clone()).collect();
                match apply(&changes).await {
                    Ok(()) => {
                        for (_, done) in together {
                            let _ = done.send(());
                        }
                        return Ok(());
                    }
                    Err(error) if changes.len() == 1 => return Err(error),
                    Err(_) => {}
                }
            }
            // They were tried together in vain, or whoever tried is gone.
            Err(oneshot::error::TryRecvError::Closed) => {}
        }
        apply(&[change]).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Five changes at once, of which the kernel refuses the named one: what was asked of it, and what became of each.
    fn made(refused: u32) -> (Vec<Vec<u32>>, Vec<Result<(), u32>>) {
        let (changes, asked) = (Together::new(), RefCell::new(Vec::new()));
        let apply = async |some: &[u32]| {
            asked.borrow_mut().push(some.to_vec());
            tokio::task::yield_now().await; // the others come meanwhile
            if some.contains(&refused) { Err(refused) } else { Ok(()) }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended =
            runtime.block_on(futures_util::future::join_all((1..=5).map(|change| changes.make(change, &apply))));
        (asked.into_inner(), ended)
    }

    #[test]
    fn who_waits_is_served_with_the_next() {
        let (asked, ended) = made(0);
        assert_eq!(asked, [vec![1], vec![2, 3, 4, 5]]);
        assert_eq!(ended, [Ok(()); 5]);
    }

    #[test]
    fn only_what_is_refused_fails() {
        let (asked, ended) = made(4);
        assert_eq!(asked[..2], [vec![1], vec![2, 3, 4, 5]]);
        assert_eq!(asked[2..], [vec![2], vec![3], vec![4], vec![5]]);
        assert_eq!(ended, [Ok(()), Ok(()), Ok(()), Err(4), Ok(())]);
    }
}
