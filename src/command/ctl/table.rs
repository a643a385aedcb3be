//! Tables as text: aligned for people, separated by commas for spreadsheets.

/// Rows under names.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

/// Where the values of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// An empty one. A name that begins with `>` is that of a column of numbers.
    pub fn new(names: &[&'static str]) -> Table {
        let column = |name: &&'static str| match name.strip_prefix('>') {
            Some(name) => (name, Side::Right),
            None => (*name, Side::Left),
        };
        Table { columns: names.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row of as many values as there are columns.
    pub fn add(&mut self, row: impl IntoIterator<Item = String>) {
        let row: Vec<String> = row.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// With columns as wide as their widest value, two blanks between them.
    pub fn text(&self) -> String {
        let width = |index: usize, name: &str| {
            let values = self.rows.iter().map(|row| row[index].chars().count());
            values.chain([name.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(index, (name, _))| width(index, name)).collect();
        let line = |values: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((value, width), (_, side)) in values.zip(&widths).zip(&self.columns) {
                match side {
                    Side::Left => line.push_str(&format!("{value:<width$}  ")),
                    Side::Right => line.push_str(&format!("{value:>width$}  ")),
                }
            }
            line.trim_end().to_owned() + "\n"
        };
        let mut text = line(&mut self.columns.iter().map(|(name, _)| *name));
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }

    /// RFC 4180, but for the line ends, which are those of this system.
    pub fn csv(&self) -> String {
        let quoted = |value: &str| match value.contains([',', '"', '\n']) {
            true => format!("\"{}\"", value.replace('"', "\"\"")),
            false => value.to_owned(),
        };
        let mut text = self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            text.push_str(&row.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(","));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right_and_csv_quotes_what_needs_it() {
        let mut table = Table::new(&["name", ">count"]);
        table.add(["a".into(), "1000000".into()]);
        table.add(["b, \"c\"".into(), "7".into()]);
        assert_eq!(table.text(), "name      count\na       1000000\nb, \"c\"        7\n");
        assert_eq!(table.csv(), "name,count\na,1000000\n\"b, \"\"c\"\"\",7\n");
    }
}
