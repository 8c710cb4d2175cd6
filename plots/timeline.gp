# Memory over one step, stacked by tag, one panel per strategy, with the phases as bands and the peak.
# Reads timeline.dat: three blocks per strategy: event, phase, delta, total, one column per tag (bytes),
# where a line of delta 0 has what was held until the event; first event, next phase's first event,
# phase; event, total, phase and owner of the peak.
figure = "timeline"
load figure.".vars"
load "style.gp"
data = figure.".dat"

# One colour and one hatch per tag, in the order of the columns.
array tag_name[10] = ["param", "gather", "grad", "master", "optim", "act", "bucket", "staging", \
    "work", "ckpt"]
array tag_colour[10] = ["#0072b2", "#56b4e9", "#e69f00", "#7f7f7f", "#009e73", "#f0e442", \
    "#d55e00", "#cc79a7", "#a0a0a0", "#404040"]
array tag_fill[10] = [3, 4, 3, 5, 2, 3, 5, 1, 3, 4]

n = words(strategies)
cols = n > 3 ? 2 : 1
rows = (n + cols - 1) / cols
stack(k) = sum [j = 1:k] column(int(word(used, j)) + 4) / scale
shade(k) = int(k) % 2 ? 0xebebeb : 0xfafafa
name(from, to, end, phase) = to - from > 0.11 * cols * end ? phase : ""
step(x) = (f = 10 ** floor(log10(x)), x < 2 * f ? f : x < 5 * f ? 2 * f : 5 * f)
left = 0.09
right = 0.82
wide = (right - left + 0.04) / cols
top_edge = 0.88
high = (top_edge - 0.04) / rows

set multiplot
set label 1 heading at screen 0.5 * (left + right), 0.965 center noenhanced
set yrange [0:top]
set ytics step(top / 3.0) font ",10" offset 0.5, 0
set style fill border linecolor rgb "#202020"
unset grid
unset key
do for [p = 1:n] {
    block = 3 * (p - 1)
    col = (p - 1) % cols
    row = (p - 1) / cols
    end = word(ends, p) + 0
    set lmargin at screen left + col * wide
    set rmargin at screen left + (col + 1) * wide - 0.04
    set tmargin at screen top_edge - row * high
    set bmargin at screen top_edge - (row + 1) * high + 0.095
    set xrange [0:end]
    set xtics step(end / 4.0) font ",10" offset 0, 0.4
    set xlabel (p + cols > n ? "allocations and releases, in order" : "") offset 0, 0.7
    set ylabel (col == 0 ? "held (".unit.")" : "") offset 1.5, 0
    set format y (col == 0 ? "%g" : "")
    set label 2 sprintf("%s: peak %.4g %s in %s", word(strategies, p), word(peaks, p) / scale, \
        unit, word(phases, p)) at screen left + (col + 0.5) * wide - 0.02, top_edge - row * high + 0.022 \
        center font ",10" noenhanced
    plot data index block + 1 using 1:(top):1:2:(0):(top):(shade($0)) with boxxyerror \
            fillstyle solid noborder linecolor rgb variable, \
        for [i = words(used):1:-1] k = int(word(used, i)) data index block using 1:(stack(i)) \
            with filledcurves y1=0 fillstyle pattern tag_fill[k] linecolor rgb tag_colour[k], \
        for [i = 1:words(used)] data index block using 1:(stack(i)) with lines \
            linecolor rgb "#202020" linewidth 0.4 dashtype solid, \
        data index block + 1 using (0.5 * ($1 + $2)):(0.93 * top):(name($1, $2, end, strcol(3))) \
            with labels font ",9" textcolor rgb "#404040", \
        data index block + 2 using 1:($2 / scale + 0.035 * top) with points linetype 24, \
        for [i = 1:limit > 0] limit / scale with lines linetype 21
    unset label 1
}

# The key alone, over the whole page.
unset label 2
unset border
unset tics
unset xlabel
unset ylabel
set lmargin at screen 0
set rmargin at screen 1
set tmargin at screen 1
set bmargin at screen 0
set key inside at screen right + 0.01, top_edge + 0.02 left top Left reverse samplen 2.0 spacing 1.2
plot [0:1] [0:1] NaN notitle, keyentry with points linetype 24 title "peak", \
    for [i = words(used):1:-1] keyentry with boxes linecolor rgb tag_colour[int(word(used, i))] \
        fillstyle pattern tag_fill[int(word(used, i))] title tag_name[int(word(used, i))], \
    for [i = 1:limit > 0] keyentry with lines linetype 21 title limit_label
unset multiplot
