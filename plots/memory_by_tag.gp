# Peak memory of the worst rank, stacked by tag, one bar per strategy, with the device's limit.
# Reads memory_by_tag.dat: strategy, total, then one column per tag (bytes).
figure = "memory_by_tag"
load figure.".vars"
load "style.gp"
data = figure.".dat"

# One colour and one hatch per tag, in the order of the columns.
array tag_name[10] = ["param", "gather", "grad", "master", "optim", "act", "bucket", "staging", \
    "work", "ckpt"]
array tag_colour[10] = ["#0072b2", "#56b4e9", "#e69f00", "#7f7f7f", "#009e73", "#f0e442", \
    "#d55e00", "#cc79a7", "#a0a0a0", "#404040"]
array tag_fill[10] = [3, 4, 3, 5, 2, 3, 5, 1, 3, 4]

set title heading
set style data histograms
set style histogram rowstacked
set style fill border linecolor rgb "#202020"
set boxwidth 0.66
set xtics scale 0 font ",11" noenhanced
set xrange [-0.6:bars - 0.4]
set grid noxtics
set ylabel "peak memory per rank (".unit.")"
set yrange [0:top]
set key invert
plot for [i = 1:words(used)] k = int(word(used, i)) data using (column(k + 2) / scale):xtic(1) \
        title tag_name[k] linecolor rgb tag_colour[k] fillstyle pattern tag_fill[k], \
    data using 0:($2 / scale):(sprintf("%.1f", $2 / scale)) with labels offset 0, 0.7 notitle, \
    for [i = 1:limit > 0] limit / scale title limit_label with lines linetype 21
