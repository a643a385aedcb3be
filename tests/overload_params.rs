//! Overload control by Via parameters (RFC 7339), which is between neighbours: what a client offers is not for the backend, and
//! what a backend puts into the client's Via is not for the client.

mod support;

use support::{BACKENDS, CLIENT, Path, address, shared_tables};
use viahop::dataplane::route::Arrival;
use viahop::dataplane::transport::StreamId;

/// The client's Via as the backend gets it, and a response to that with `more` in its client's Via as the client gets it.
fn there_and_back(params: &str, more: &str, stream: Option<StreamId>) -> [String; 2] {
    let mut path = Path::new(shared_tables());
    let request = format!(
        "INVITE sip:bob@example.net SIP/2.0\r\nVia: SIP/2.0/UDP {CLIENT};branch=z9hG4bKoc{params}\r\nMax-Forwards: 70\r\n\
         From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>\r\nCall-ID: oc\r\nCSeq: 1 INVITE\r\n\
         Content-Length: 0\r\n\r\n"
    );
    let arrival = Arrival { from: address(CLIENT), listener: Some(0), local: None, stream };
    let there = path.receive_on(request.as_bytes(), arrival);
    assert!(there.is_forward(), "{:?}", there.verdict);
    let [ours, clients] = there.rows("via").try_into().expect("two");
    let rest = "From: <sip:a@example.net>;tag=1\r\nTo: <sip:b@example.net>;tag=2\r\nCall-ID: oc\r\nCSeq: 1 INVITE\r\n\
                Content-Length: 0\r\n\r\n";
    let came = clients.split_once("z9hG4bKoc").expect("the branch").1.to_owned();
    // In two rows and in one.
    let backs =
        [format!("Via: {ours}\r\nVia: {clients}{more}\r\n"), format!("Via: {ours}, {clients}{more}\r\n")].map(|vias| {
            let back = path.receive(format!("SIP/2.0 200 OK\r\n{vias}{rest}").as_bytes(), BACKENDS[0]);
            assert!(back.is_forward(), "{:?}", back.verdict);
            let text = back.text();
            assert!(text.ends_with(rest), "{text}");
            let [via] = back.rows("via").try_into().expect("one");
            via.split_once("z9hG4bKoc").expect("the branch").1.to_owned()
        });
    assert_eq!(backs[0], backs[1]);
    let [back, _] = backs;
    [came, back]
}

#[test]
fn what_neighbours_say_of_overload_ends_here_both_ways() {
    let told = ";received=198.51.100.7;rport=5060";
    for (params, came) in [
        (";oc", ""),
        (";oc;oc-algo=\"loss,rate\"", ""),
        (";rport;OC ; Oc-Algo = \"loss\";x", &*format!("{told};x")),
        (";oc;rport;oc-seq=1.1;oc-validity=0", told),
        // Nobody has registered these.
        (";occ;oc-other=1;x=oc", ";occ;oc-other=1;x=oc"),
    ] {
        for more in ["", ";oc=100;oc-algo=\"loss\";oc-validity=60000;oc-seq=1282321615.782", ";oc=100;y=\"a;oc=1\""] {
            let kept = if more.ends_with("\"a;oc=1\"") { ";y=\"a;oc=1\"" } else { "" };
            for stream in [None, StreamId::new(0, 7, 1)] {
                let back = format!("{came}{kept}");
                assert_eq!(there_and_back(params, more, stream), [came.to_owned(), back], "{params} {more} {stream:?}");
            }
        }
    }
}
