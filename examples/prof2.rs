#[path="../benches/support/mod.rs"] mod support;
use viahop::dataplane::{room::Room,route::Arrival,limits::*,verdict::Verdict};
fn main(){ let n:usize=std::env::args().nth(1).unwrap().parse().unwrap(); let tables=support::tables(); let mut d=support::dispatcher(); let mut head=vec![0;HEAD_MAX];
 let a=Arrival{from:support::address(support::CLIENT),listener:Some(0),local:None};
 let mut rs:Vec<_>=(0..32).map(|i|{let mut c=support::invite(i); let mut r=Room::new(&mut c,&mut head); let (_,v)=d.on_datagram(&tables,0,a,&mut r); let Verdict::Forward{to,..}=v else{panic!()}; (to,support::ok_of(&r.output().concat()))}).collect();
 let t=std::time::Instant::now();
 for i in 0..n{ let (to,c)=&mut rs[i&31]; let mut r=Room::new(c,&mut head); let a=Arrival{from:*to,listener:None,local:None}; let v=std::hint::black_box(d.on_datagram(&tables,0,a,&mut r)); if i<32 {assert!(matches!(v.1,Verdict::Forward{..}),"{v:?}");} }
 println!("200: {:.1} ns",t.elapsed().as_nanos() as f64/n as f64); }
