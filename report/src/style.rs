//! The page's style sheet, and the policy that allows it.

use sha2::{Digest, Sha256};

/// A colour by day and by night.
struct Colour {
    name: &'static str,
    light: u32,
    dark: u32,
}

const fn colour(name: &'static str, light: u32, dark: u32) -> Colour {
    Colour { name, light, dark }
}

/// Each pair that is put on one another has a test of its contrast below.
const PALETTE: [Colour; 19] = [
    colour("ground", 0xf4_f5f7, 0x11_161d),
    colour("sheet", 0xff_ffff, 0x1a_212b),
    colour("band", 0xf4_f6f9, 0x20_2935),
    colour("ink", 0x1a_2230, 0xe8_ecf2),
    colour("soft", 0x52_5d6d, 0xa9_b4c2),
    colour("line", 0xd9_dee5, 0x33_3e4c),
    colour("grid", 0xe6_e9ee, 0x2a_3441),
    colour("accent", 0x1f_559c, 0x8f_b8f5),
    colour("bar", 0x2f_6fbe, 0x7a_abf0),
    colour("good", 0x17_6a3a, 0x7f_d9a2),
    colour("good-band", 0xe5_f4ea, 0x18_3326),
    colour("warn", 0x85_4f00, 0xf2_c26b),
    colour("warn-band", 0xfd_f2dc, 0x3a_2e17),
    colour("bad", 0xa8_1d17, 0xff_a199),
    colour("bad-band", 0xfd_eae8, 0x40_1f1d),
    colour("h1", 0xe6_eefa, 0x22_3149),
    colour("h2", 0xc6_daf4, 0x2a_4470),
    colour("h3", 0x9c_c0ee, 0x36_5b97),
    colour("h4", 0x1f_559c, 0x8f_b8f5),
];

fn variables(of: impl Fn(&Colour) -> u32) -> String {
    PALETTE
        .iter()
        .map(|colour| format!("--{}:#{:06x};", colour.name, of(colour)))
        .collect()
}

/// The whole style sheet.
pub fn sheet() -> String {
    let (light, dark) = (variables(|c| c.light), variables(|c| c.dark));
    format!(
        ":root{{color-scheme:light dark;{light}}}\n\
         @media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{RULES}"
    )
}

/// What the page may load and run: the style sheet in it, and nothing else.
pub fn policy(sheet: &str) -> String {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        base64(&Sha256::digest(sheet.as_bytes()))
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            if at <= chunk.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

const RULES: &str = r#"
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
 "Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
main,header,footer{max-width:72rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.25rem}
h1{font-size:1.9rem;line-height:1.2;margin:.15rem 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .2rem}
p{margin:.25rem 0 .75rem}
.over{margin:0;color:var(--accent);font-weight:600;font-size:.8rem;letter-spacing:.09em;text-transform:uppercase}
.soft,.more,caption,footer{color:var(--soft)}
.soft{font-size:.94rem}
.nb{white-space:nowrap}
a{color:var(--accent);text-underline-offset:.15em}
a:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:2px}
code,.q{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
.q{white-space:pre-wrap}
bdi.n{font-weight:600}
.ctl{border:1px solid var(--bad);color:var(--bad);border-radius:3px;padding:0 .2em;font-size:max(.78em,11.5px);font-weight:600;
 white-space:nowrap}
.facts{display:flex;flex-wrap:wrap;gap:.2rem 2rem;margin:0 0 1.4rem;padding:0}
.facts div{display:flex;gap:.5rem}
.facts dt{color:var(--soft)}
.facts dd{margin:0}
section{background:var(--sheet);border:1px solid var(--line);border-radius:10px;padding:1.25rem 1.4rem 1.3rem;
 margin:0 0 1.1rem}
.verdicts{list-style:none;margin:.8rem 0 1.1rem;padding:0;display:grid;gap:.5rem}
.verdicts li{border-left:5px solid;border-radius:4px;padding:.5rem .8rem}
.verdicts b:first-child{margin-right:.3rem}
.verdicts .good{border-color:var(--good);background:var(--good-band)}
.verdicts .warn{border-color:var(--warn);background:var(--warn-band)}
.verdicts .bad{border-color:var(--bad);background:var(--bad-band)}
.good>b:first-child,.fine{color:var(--good)}
.warn>b:first-child,.warned{color:var(--warn)}
.bad>b:first-child,.failed{color:var(--bad)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.6rem;margin:0}
.figures div{background:var(--band);border-radius:8px;padding:.6rem .85rem .55rem}
.figures dt{color:var(--soft);font-size:.86rem}
.figures dd{margin:0;font-size:1.6rem;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.figures small{display:block;color:var(--soft);font-size:.8rem;font-weight:400}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:0 0 1.1rem;padding:0;font-size:.94rem}
nav a{display:inline-block;padding:.25rem 0}
table{border-collapse:collapse;width:100%;margin:.6rem 0 .2rem;font-size:.92rem}
caption{text-align:left;font-size:.88rem;padding:0 0 .35rem}
th,td{text-align:left;vertical-align:top;padding:.42rem .7rem .42rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;font-size:.82rem;border-bottom-width:2px;white-space:nowrap}
tbody th{font-weight:400}
tr:last-child>*{border-bottom:0}
.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
time{white-space:nowrap;font-variant-numeric:tabular-nums}
time b{font-weight:400;color:var(--soft)}
.more{margin:.5rem 0 0;font-size:.92rem}
.none{color:var(--soft);margin:.5rem 0 0}
.lanes{margin:.8rem 0 0}
.lane{display:grid;grid-template-columns:11rem minmax(0,1fr);gap:0 1rem;align-items:center;padding:.12rem 0}
.lane>span{text-align:right;line-height:1.25;font-size:.92rem}
svg{display:block;overflow:hidden}
svg svg{overflow:visible}
.lane>svg{width:100%;height:34px}
.track{fill:var(--band)}
.tick{stroke:var(--line);stroke-width:1}
.bar{fill:var(--bar);stroke:var(--bar);stroke-width:2}
.d1{fill:var(--bar);fill-opacity:.35}
.d2{fill:var(--bar);fill-opacity:.6}
.d3{fill:var(--bar);fill-opacity:.8}
.d4{fill:var(--bar)}
.denied{fill:var(--sheet);stroke:var(--warn);stroke-width:2}
.violation,.terminated{stroke:var(--bad);stroke-width:2.6;fill:none}
.axis>svg{height:20px}
.axis text{fill:var(--soft);font-size:12px}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.3rem;list-style:none;margin:.6rem 0 0;padding:0;font-size:.86rem;
 color:var(--soft)}
.legend li{display:flex;align-items:center;gap:.4rem}
.legend svg{width:14px;height:14px}
.matrix{table-layout:fixed}
.matrix th,.matrix td{padding:.45rem .35rem;border:1px solid var(--line);text-align:center;vertical-align:middle}
.matrix tr:last-child>*{border-bottom:1px solid var(--line)}
.matrix thead th{white-space:normal;line-height:1.25}
.matrix thead th:first-child,.matrix tbody th{text-align:right;width:11rem;padding-right:.7rem}
.matrix td{font-variant-numeric:tabular-nums}
.matrix .h1{background:var(--h1)}
.matrix .h2{background:var(--h2)}
.matrix .h3{background:var(--h3)}
.matrix .h4{background:var(--h4);color:var(--sheet)}
.matrix .sum{color:var(--soft)}
.phone{display:none;table-layout:fixed}
.phone th:last-child{width:4rem}
footer{font-size:.88rem;padding-top:.4rem;padding-bottom:2.5rem}
@media screen and (max-width:46rem){
 main,header,footer{padding-left:.85rem;padding-right:.85rem}
 header{padding-top:1.4rem}
 h1{font-size:1.5rem}
 section{padding:1rem .95rem 1.05rem;border-radius:8px}
 .facts{display:block}
 .lane{grid-template-columns:minmax(0,1fr);padding:.3rem 0}
 .lane>span{text-align:left}
 .axis>span{display:none}
 .desk{display:none}
 .phone{display:table}
}
@media screen and (max-width:70rem){
 .cards thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
 .cards,.cards tbody,.cards tr,.cards td,.cards th,.cards caption{display:block}
 .cards tr{border:1px solid var(--line);border-radius:8px;padding:.45rem .7rem;margin:0 0 .55rem}
 .cards tr>*{border:0;padding:.12rem 0;text-align:left;white-space:normal}
 .cards td[data-l]{display:grid;grid-template-columns:6.2rem minmax(0,1fr);gap:.6rem}
 .cards td[data-l]::before{content:attr(data-l);color:var(--soft)}
 .cards td:empty{display:none}
}
@media print{
 @page{margin:14mm}
 body{background:#fff;font-size:10.5pt}
 main,header,footer{max-width:none;padding:0}
 nav{display:none}
 section{border:0;padding:0;margin:0 0 16pt}
 h2{break-after:avoid}
 tr,li,.figures div,.lane{break-inside:avoid}
 thead{display:table-header-group}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
@media (forced-colors:active){
 .bar,.d1,.d2,.d3,.d4{fill:CanvasText;stroke:CanvasText}
 .denied,.violation,.terminated{stroke:CanvasText}
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance(colour: u32) -> f64 {
        let part = |shift: u32| {
            let part = f64::from(colour >> shift & 255) / 255.0;
            if part <= 0.040_45 {
                part / 12.92
            } else {
                ((part + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * part(16) + 0.7152 * part(8) + 0.0722 * part(0)
    }

    /// Contrast as WCAG 2 defines it.
    fn contrast(one: u32, other: u32) -> f64 {
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    fn named(name: &str) -> &'static Colour {
        PALETTE.iter().find(|colour| colour.name == name).unwrap()
    }

    #[test]
    fn the_measure_of_contrast_is_that_of_wcag() {
        assert!((contrast(0x00_0000, 0xff_ffff) - 21.0).abs() < 1e-9);
        assert!((contrast(0x76_7676, 0xff_ffff) - 4.54).abs() < 0.01);
    }

    #[test]
    fn text_has_a_contrast_of_4_5_and_what_is_drawn_of_3() {
        let texts = [
            (
                "ink",
                &[
                    "ground",
                    "sheet",
                    "band",
                    "good-band",
                    "warn-band",
                    "bad-band",
                    "h1",
                    "h2",
                    "h3",
                ][..],
            ),
            ("soft", &["ground", "sheet", "band"]),
            ("accent", &["ground", "sheet"]),
            ("good", &["sheet", "good-band"]),
            ("warn", &["sheet", "warn-band"]),
            ("bad", &["sheet", "bad-band"]),
            ("sheet", &["h4"]),
        ];
        for (text, grounds) in texts {
            for ground in grounds {
                let (text, ground) = (named(text), named(ground));
                for (one, other, when) in [(text.light, ground.light, "light"), (text.dark, ground.dark, "dark")] {
                    let ratio = contrast(one, other);
                    assert!(ratio >= 4.5, "{} on {}, {when}: {ratio:.2}", text.name, ground.name);
                }
            }
        }
        for drawn in ["bar", "warn", "bad", "accent"] {
            for ground in ["sheet", "band"] {
                let (drawn, ground) = (named(drawn), named(ground));
                assert!(
                    contrast(drawn.light, ground.light) >= 3.0,
                    "{} {}",
                    drawn.name,
                    ground.name
                );
                assert!(
                    contrast(drawn.dark, ground.dark) >= 3.0,
                    "{} {}",
                    drawn.name,
                    ground.name
                );
            }
        }
    }

    #[test]
    fn digits_of_base64_are_those_of_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (given, expected) in cases {
            assert_eq!(base64(given.as_bytes()), expected);
        }
    }

    #[test]
    fn the_sheet_loads_nothing() {
        let sheet = sheet();
        for word in ["url(", "@import", "@font-face", "http", "</", "expression"] {
            assert!(!sheet.contains(word), "{word}");
        }
        assert!(sheet.is_ascii());
    }

    #[test]
    fn every_colour_that_is_used_is_there() {
        for used in RULES.split("var(--").skip(1) {
            let name = used.split(')').next().unwrap();
            assert!(PALETTE.iter().any(|colour| colour.name == name), "{name}");
        }
    }
}
