//! The private network of RUN steps: what passes, what does not, and that the machine is left as it was.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as LocalAddr, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Run, TestEnv, can, require, require_root};

/// Answers every connection with the word, for as long as the test runs.
fn server(address: IpAddr, word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let mut request = [0; 1024];
            let _ = connection.read(&mut request);
            let _ = write!(connection, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{word}", word.len());
        }
    });
    address
}

/// The machine's address towards the world, or another one that is not loopback's.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
    socket.connect("198.51.100.1:9").expect("the machine has a way out");
    socket.local_addr().expect("it is bound").ip()
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
pub(crate) fn a_step_reaches_the_network_and_not_the_machines_loopback() {
    let env = TestEnv::busybox();
    let outside = server(own_address(), "far away");
    let canary = server(LOOPBACK, "canary");
    let (port, own) = (canary.port(), own_address());
    let script = format!(
        "timeout 10 wget -q -O - http://{outside}/ && echo; \
         for a in 127.0.0.1 127.0.0.2 0.0.0.0 localhost {own} me $(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p'); do \
         timeout 2 wget -q -O - http://$a:{port}/ && echo \" by $a\"; done; echo end; ls /sys/class/net | tr '\\n' ' '"
    );
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let hosts = ["--no-cache", "--add-host", "me:host-gateway"];
    let private = env.build(&context, &[&hosts[..], &["--network=private"]].concat()).ok();
    private.contains(" far away\n").contains(" end\n").contains(" eth0 lo").lacks(" canary");
    env.build(&context, &hosts).ok().contains(" far away\n").lacks(" canary").lacks("WARN");
    env.build(&context, &[&hosts[..], &["--network=host"]].concat()).ok().contains(" far away\n").contains("canary by");
    env.build(&context, &[&hosts[..], &["--network=none"]].concat()).ok().lacks("far away\n").lacks("canary by");
}

#[test]
fn host_gateway_is_the_machine() {
    let env = TestEnv::busybox();
    let listener = server(Ipv4Addr::UNSPECIFIED.into(), "on all addresses");
    let script = format!("timeout 10 wget -q -O - http://me:{}/", listener.port());
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    for network in ["private", "host"] {
        let args = ["--no-cache", "--network", network, "--add-host", "me:host-gateway"];
        env.build(&context, &args).ok().contains(" on all addresses");
    }
    let run =
        env.rbuild(["run", "--network=private", "--add-host=me:host-gateway", "busybox", "sh", "-c", &script]).ok();
    assert_eq!(run.stdout, "on all addresses");
}

#[test]
pub(crate) fn abstract_sockets_of_the_machine_do_not_exist_in_a_step() {
    let env = TestEnv::busybox();
    let name = format!("rbuild-canary-{}", std::process::id());
    let address = LocalAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("nobody else has it");
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN grep -c '{name}$' /proc/net/unix || true\n"));
    let count = |network: &str| {
        let out = env.build(&context, &["--no-cache", "--network", network]).ok();
        out.stderr.lines().any(|line| line.ends_with(" 1"))
    };
    assert!(count("host"), "the machine's network shows it");
    assert!(!count("private") && !count("none"), "an own one does not");
}

#[test]
fn refusals_are_told_at_once_and_large_answers_are_whole() {
    let env = TestEnv::busybox();
    let own = own_address();
    let closed = TcpListener::bind((own, 0)).expect("a port is free").local_addr().expect("it is bound");
    let large = TcpListener::bind((own, 0)).expect("a port is free");
    let address = large.local_addr().expect("it is bound");
    const SIZE: usize = 16 << 20;
    thread::spawn(move || {
        for connection in large.incoming() {
            let mut connection = connection.expect("a connection");
            let mut request = [0; 1024];
            let _ = connection.read(&mut request);
            let _ = write!(connection, "HTTP/1.0 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            let part: Vec<u8> = (0..SIZE).map(|at| (at / 251) as u8).collect();
            let _ = connection.write_all(&part);
        }
    });
    let expected: Vec<u8> = (0..SIZE).map(|at| (at / 251) as u8).collect();
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&expected));
    let script = format!(
        "timeout 20 wget -q -O - http://{closed}/ 2>&1 | grep -o refused; for n in 1 2 3; do wget -q -O - http://{address}/ | sha256sum & done; wait"
    );
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let out = env.build(&context, &["--network=private"]).timeout(60).ok();
    assert_eq!(out.stderr.matches(&sum).count(), 3, "{}", out.stderr);
    assert!(out.stderr.contains(" refused\n"), "{}", out.stderr);
}

#[test]
fn what_a_step_sends_arrives_whole_with_its_end() {
    let env = TestEnv::busybox();
    let listener = TcpListener::bind((own_address(), 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let received = thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("the step connects");
        let mut bytes = Vec::new();
        // Only the end of what the step sends ends this.
        connection.read_to_end(&mut bytes).expect("read");
        write!(connection, "got {}", bytes.len()).expect("the other direction is still open");
        bytes
    });
    let script =
        format!("head -c 20000000 /dev/urandom > /f; sha256sum < /f; nc {} {} < /f", address.ip(), address.port());
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let out = env.build(&context, &["--network=private"]).timeout(60).ok();
    let bytes = received.join().expect("the server");
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    assert!(bytes.len() == 20_000_000 && out.stderr.contains(&sum), "{} bytes: {}", bytes.len(), out.stderr);
    assert!(out.stderr.contains("got 20000000"), "{}", out.stderr);
}

#[test]
pub(crate) fn steps_at_the_same_time_have_a_loopback_each() {
    let env = TestEnv::busybox();
    let stage = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN mkdir /w && echo page of {name} > /w/index.html && httpd -p 7777 -h /w && sleep 2 && \
             wget -q -O /out http://127.0.0.1:7777/\n"
        )
    };
    let text = format!(
        "{}{}FROM busybox\nCOPY --from=a /out /a\nCOPY --from=b /out /b\nRUN cat /a /b\n",
        stage("a"),
        stage("b")
    );
    let out = env.build(&env.dockerfile("c", &text), &["--network=private"]).ok();
    assert!(out.stderr.contains(" page of a\n") && out.stderr.contains(" page of b\n"), "{}", out.stderr);
}

/// Answers every question for an address with 192.0.2.123.
fn name_server(address: &str) -> bool {
    let Ok(socket) = UdpSocket::bind(address) else { return false };
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[12..length];
            // Names end in a zero byte; type and class follow.
            let end = question.iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let is_v4 = question.get(end - 4..end - 2) == Some(&[0, 1]);
            let mut answer = packet[..2].to_vec();
            answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
            answer.extend_from_slice(&question[..end]);
            if is_v4 {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 123]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    true
}

#[test]
fn names_are_resolved_by_the_machines_server_even_on_loopback() {
    if !require(&["unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    assert!(name_server("127.0.0.153:53"), "nobody else uses this address");
    std::fs::write(env.path("resolv.conf"), "nameserver 127.0.0.153\nsearch example.org\n").expect("ours");
    let canary = server("127.0.0.153".parse().expect("address"), "canary");
    let script = format!(
        "nslookup -type=a www.example.com; grep search /etc/resolv.conf; \
         timeout 2 wget -q -O - http://$(sed -n 's/nameserver //p' /etc/resolv.conf):{}/ ; true",
        canary.port()
    );
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let rbuild = env!("CARGO_BIN_EXE_rbuild");
    let command = format!(
        "mount --bind {}/resolv.conf /etc/resolv.conf && exec {rbuild} --progress plain --network=private {}",
        env.dir().display(),
        context.dir().display()
    );
    let out = env.program("unshare").args(["-m", "sh", "-c", &command]).ok();
    out.contains("192.0.2.123").contains(" search example.org\n").lacks("127.0.0.153").lacks(" canary");
}

#[test]
fn the_machines_network_is_left_as_it_was() {
    let env = TestEnv::busybox();
    let outside = server(own_address(), "far away");
    let state = || -> String {
        let shown = |program: &str, args: &[&str]| {
            if can(program) { Run::new(program).args(args).run().stdout } else { String::new() }
        };
        let settings = shown("sysctl", &["-a", "-r", "^net\\.(ipv4|ipv6)\\.(conf\\.|ip_forward)"]);
        let counters = |line: &&str| !line.contains("counter packets") && !line.starts_with('#');
        let rules = shown("nft", &["list", "ruleset"]) + &shown("iptables-save", &[]) + &shown("ip6tables-save", &[]);
        let rules: Vec<&str> = rules.lines().filter(counters).collect();
        let links = std::fs::read_dir("/sys/class/net").expect("interfaces").flatten();
        let mut links: Vec<String> = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
        links.sort();
        let routes = std::fs::read_to_string("/proc/net/route").expect("routes");
        format!("{settings}\n{}\n{links:?}\n{routes}", rules.join("\n"))
    };
    let before = state();
    assert!(before.contains("net.ipv4.ip_forward") || !can("sysctl"), "the settings are seen");
    let script = format!("wget -q -O - http://{outside}/ && echo && echo under way && sleep 300");
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let mut build = env.build(&context, &["--network=private"]).spawn();
    build.wait_for(" under way\n");
    let during = state();
    assert_eq!(before, during, "while a step runs");
    let gateways = gateways_of(build.pid());
    assert_eq!(gateways.len(), 1, "the step's gateway runs");
    build.signal(Signal::KILL);
    build.finish();
    env.assert_clean();
    let gone = |pid: &u32| !std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty());
    let began = Instant::now();
    while !gateways.iter().all(gone) {
        assert!(began.elapsed() < Duration::from_secs(10), "the gateway outlived rbuild");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(before, state(), "after kill -9");
}

/// Processes of this name beneath a process.
fn gateways_of(ancestor: u32) -> Vec<u32> {
    let number = |text: &str| text.parse::<u32>().ok();
    let processes: Vec<(u32, u32, String)> = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| {
            let pid = number(&entry.file_name().to_string_lossy())?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = number(stat.rsplit(')').next()?.split_whitespace().nth(1)?)?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, parent, String::from_utf8_lossy(&command).into_owned()))
        })
        .collect();
    let parent_of = |pid: u32| processes.iter().find(|(own, ..)| *own == pid).map(|(_, parent, _)| *parent);
    let beneath = |pid: u32| std::iter::successors(Some(pid), |pid| parent_of(*pid)).any(|pid| pid == ancestor);
    let found = processes.iter().filter(|(pid, _, command)| command.starts_with("rbuild-gateway") && beneath(*pid));
    found.map(|(pid, ..)| *pid).collect()
}

#[test]
fn where_no_network_can_be_made_the_hosts_is_used_and_said_once() {
    if !require(&["unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN echo one; ls /sys/class/net\nRUN echo two\n";
    let context = env.dockerfile("c", text);
    let rbuild = |args: &str| {
        let command = format!(
            "echo 0 > /proc/sys/user/max_net_namespaces && exec {} --progress plain --no-cache {args} {}",
            env!("CARGO_BIN_EXE_rbuild"),
            context.dir().display()
        );
        env.program("unshare").args(["-Ur", "-m", "sh", "-c", &command])
    };
    let out = rbuild("").ok().contains(" one\n").contains(" two\n");
    assert_eq!(out.stderr.matches("use the host's network").count(), 1, "{}", out.stderr);
    rbuild("--network=private").run().exits(1).contains("no private network");
}

#[test]
fn the_configuration_file_chooses_the_network() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN ls /sys/class/net | tr '\\n' ' '\n");
    env.configure("network = \"none\"\n");
    env.build(&context, &["--no-cache"]).ok().contains(" lo ").lacks("eth0 lo");
    env.build(&context, &["--no-cache", "--network=private"]).ok().contains(" eth0 lo ");
    env.configure("network = \"wired\"\n");
    env.build(&context, &[]).run().exits(1).contains("wired");
    env.configure("");
    env.build(&context, &["--network=wired"]).run().exits(2).contains("--network");
}

#[test]
fn a_machine_with_ipv6_has_it_in_steps() {
    if !require(&["unshare", "ip"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    std::fs::create_dir(env.path("pages")).expect("ours");
    std::fs::write(env.path("pages/index.html"), "by six\n").expect("ours");
    let request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'";
    let script = format!(
        "{request} | nc 2001:db8::9 8080 | tail -n 1; {request} | timeout 3 nc 2001:db8::9 8081; {request} | timeout 3 nc ::1 8080; \
         ping6 -c 1 fd72:6275:696c:6400::1 > /dev/null 2>&1; echo end"
    );
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let (dir, rbuild) = (env.dir().display(), env!("CARGO_BIN_EXE_rbuild"));
    // A machine of its own: an interface with addresses and default routes, and nobody on its other side.
    let machine = format!(
        "set -e; ip link set lo up; ip link add one type veth peer name other; ip link set other up; ip link set one up; \
         ip addr add 192.0.2.9/24 dev one; ip route add default via 192.0.2.1 dev one; \
         ip -6 addr add 2001:db8::9/64 dev one nodad; ip -6 route add default via 2001:db8::1 dev one; set +e; \
         busybox httpd -p '[2001:db8::9]:8080' -h {dir}/pages -f & sleep 1; \
         {rbuild} --progress plain --network=private {}; code=$?; kill $!; exit $code",
        context.dir().display()
    );
    let out = env.program("unshare").args(["-n", "-m", "sh", "-c", &machine]).ok();
    assert!(out.stderr.contains(" by six\n") && out.stderr.contains(" end\n"), "{}", out.text());
    assert_eq!(out.stderr.matches("by six").count(), 1, "{}", out.text());
}
