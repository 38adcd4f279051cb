#!/usr/bin/env bash
# chart.sh TITLE: an SVG of bars on the standard output, from lines "group|label|value|mark" on the standard input, where a
# value of 1 is the whole width. A mark of 1 is one of ours. Light and dark as the reader's.
set -euo pipefail
awk -F '|' -v title="$1" '
function escaped(text) {
    gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text)
    return text
}
BEGIN { left = 300; wide = 330; high = 22; top = 44; y = top }
{
    if ($1 != group) {
        group = $1
        y += y > top ? 14 : 0
        body = body sprintf("  <text class=\"group\" x=\"12\" y=\"%d\">%s</text>\n", y + 15, escaped(group))
        y += high
    }
    length_ = $3 * wide
    if (length_ > wide * 1.1) length_ = wide * 1.1
    body = body sprintf("  <text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", left - 8, y + 15, escaped($2))
    body = body sprintf("  <rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n", \
        $4 == 1 ? "ours" : "other", left, y + 3, length_, high - 6)
    body = body sprintf("  <text x=\"%.1f\" y=\"%d\">%s</text>\n", left + length_ + 6, y + 15, $3)
    said = said sprintf("%s, %s: %s. ", $1, $2, $3)
    y += high
}
END {
    y += 12
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"%d\" viewBox=\"0 0 720 %d\" role=\"img\">\n", y, y
    printf "  <title>%s</title>\n  <desc>%s</desc>\n", escaped(title), escaped(said)
    print "  <style>"
    print "    svg { background: #ffffff; font: 13px system-ui, sans-serif } text { fill: #1f2328 }"
    print "    .title, .group { font-weight: 600 } .ours { fill: #2b6cb0 } .other { fill: #8c959f } line { stroke: #8c959f }"
    print "    @media (prefers-color-scheme: dark) {"
    print "      svg { background: #0d1117 } text { fill: #e6edf3 } .ours { fill: #58a6ff } .other { fill: #6e7681 }"
    print "    }"
    print "  </style>"
    printf "  <text class=\"title\" x=\"12\" y=\"26\">%s</text>\n", escaped(title)
    printf "%s", body
    printf "  <line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\" stroke-dasharray=\"3 3\"/>\n", left + wide, left + wide, top, y - 8
    print "</svg>"
}'
