//! Scripts in a unit of their own. The programs that want them run are shut into narrow sandboxes, which a script of
//! the operator's cannot live in; and what a script needs is nothing that those programs should have.
//!
//! systemd listens, and starts a process for each who asks (`Accept=yes`). One line of JSON each way.

use std::{io, os::fd::AsFd, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::{Outcome, Ran, run};

/// Of a line, in bytes: more than all variables and all outcomes ever take.
const LONGEST: u64 = 64 * 1024;
/// How the variables that scripts are given begin. `LD_PRELOAD` and its like are nobody's to set from afar.
const PREFIX: &str = "LSM_";

#[derive(Serialize, Deserialize)]
struct Request {
    variables: Vec<(String, String)>,
    deadline: Duration,
}

/// Has the directory's scripts run by the unit that listens on `socket`. Where none does (an image without systemd, a
/// program started by hand), they are run here.
pub async fn ask(socket: &Path, directory: &Path, variables: &[(&str, String)], deadline: Duration) -> Vec<Ran> {
    let Ok(stream) = UnixStream::connect(socket).await else {
        return run(directory, variables, deadline).await;
    };
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let ran = converse(stream, &Request { variables, deadline }).await.unwrap_or_else(|error| {
        let outcome = Outcome::Refused(format!("the unit behind {} did not answer: {error}", socket.display()));
        vec![Ran { name: directory.display().to_string(), outcome, ms: 0 }]
    });
    ran.iter().for_each(|ran| ran.log(directory));
    ran
}

async fn converse(mut stream: UnixStream, request: &Request) -> io::Result<Vec<Ran>> {
    let line = serde_json::to_string(request)? + "\n";
    stream.write_all(line.as_bytes()).await?;
    let answer = read_line(&mut BufReader::new(stream.take(LONGEST))).await?;
    Ok(serde_json::from_str(&answer)?)
}

/// The unit's process: runs the directory's scripts for who is at the other end of standard input, while they wait for it.
///
/// # Errors
/// Standard input is no socket, or what comes from it is no request.
pub async fn serve(directory: &Path) -> io::Result<()> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    answer(UnixStream::from_std(stream)?, directory).await
}

async fn answer(stream: UnixStream, directory: &Path) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from.take(LONGEST));
    let request: Request = serde_json::from_str(&read_line(&mut from).await?)?;
    if let Some((name, _)) = request.variables.iter().find(|(name, _)| !name.starts_with(PREFIX)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is none of the scripts' variables")));
    }
    let variables: Vec<_> = request.variables.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let ran = tokio::select! {
        ran = run(directory, &variables, request.deadline) => ran,
        // Who starts anew asks anew: two runs at once would leave the last word to chance.
        _ = from.read_u8() => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked is gone")),
    };
    to.write_all((serde_json::to_string(&ran)? + "\n").as_bytes()).await
}

async fn read_line(from: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    fn local<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// What the unit makes of a request, and what is said to who asked.
    async fn asked(directory: &Path, name: &str) -> (io::Result<()>, io::Result<Vec<Ran>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let variables = vec![(name.to_owned(), "dallas".to_owned())];
        let request = Request { variables, deadline: crate::DEADLINE };
        tokio::join!(answer(theirs, directory), converse(ours, &request))
    }

    #[test]
    fn the_unit_says_what_became_of_them_and_sets_no_other_variables() {
        let absent = Path::new("/nonexistent/switched.d");
        let (served, ran) = local(asked(absent, "LSM_LAN"));
        served.unwrap();
        assert_eq!(ran.unwrap(), []);
        let (served, ran) = local(asked(Path::new("/proc/version"), "LSM_LAN"));
        served.unwrap();
        let said = ran.unwrap()[0].to_string();
        assert_eq!(said, "/proc/version: not run: it is not a directory");
        let (served, ran) = local(asked(absent, "LD_PRELOAD"));
        assert!(served.unwrap_err().to_string().starts_with("LD_PRELOAD is none of the scripts' variables"));
        assert_eq!(ran.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn where_there_is_no_unit_they_are_run_here_and_one_that_is_mute_is_named() {
        local(async {
            let socket = std::env::temp_dir().join(format!("lsm-scripts-unit-{}.sock", std::process::id()));
            let directory = Path::new("/proc/version");
            let ran = ask(&socket, directory, &[], crate::DEADLINE).await;
            assert_eq!(ran[0].to_string(), "/proc/version: not run: it is not a directory");
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let hang_up = async { drop(listener.accept().await.unwrap()) };
            let (ran, ()) = tokio::join!(ask(&socket, directory, &[], crate::DEADLINE), hang_up);
            std::fs::remove_file(&socket).unwrap();
            let said = ran[0].to_string();
            assert!(said.contains("not run: the unit behind") && said.contains("did not answer"), "{said}");
        });
    }
}
