//! A JPEG file's markers up to its one scan.

use super::huffman::Table;

/// Coefficients of a block.
pub(super) const BLOCK: usize = 64;

/// One colour component.
#[derive(Debug, Clone, Copy)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors, columns and rows of blocks in an MCU.
    pub(super) h: usize,
    pub(super) v: usize,
    pub(super) quant: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

/// What stands before the data.
#[derive(Default)]
pub(super) struct Header<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    /// In zigzag order.
    pub(super) quant: [Option<[u16; BLOCK]>; 4],
    pub(super) dc: [Option<Table>; 4],
    pub(super) ac: [Option<Table>; 4],
    /// MCUs of a restart interval; 0: all.
    pub(super) restart: usize,
    /// From behind the scan's header to the end of the file.
    pub(super) data: &'a [u8],
    jfif: bool,
    /// The Adobe marker's colour transform.
    adobe: Option<u8>,
}

impl<'a> Header<'a> {
    /// `None` where the file is of a kind that is not read here.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (mut header, mut rest) = (Header::default(), bytes.strip_prefix(&[0xff, 0xd8])?);
        loop {
            let marker;
            (marker, rest) = rest.strip_prefix(&[0xff])?.split_first()?;
            let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
            let segment = rest.get(2..length)?;
            rest = &rest[length..];
            match marker {
                0xc0 | 0xc1 => header.frame(segment)?,
                0xc4 => header.huffman(segment)?,
                0xdb => header.quantisation(segment)?,
                0xdd => header.restart = usize::from(u16::from_be_bytes(segment.try_into().ok()?)),
                0xe0 => header.jfif |= segment.starts_with(b"JFIF\0"),
                0xee if segment.starts_with(b"Adobe") => header.adobe = Some(*segment.get(11)?),
                0xe1..=0xef | 0xfe => {}
                0xda => {
                    header.scan(segment)?;
                    header.data = rest;
                    return header.is_usual().then_some(header);
                }
                _ => return None,
            }
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let [8, h1, h0, w1, w0, count, components @ ..] = segment else { return None };
        if !self.components.is_empty() || components.len() != 3 * usize::from(*count) {
            return None;
        }
        self.height = usize::from(u16::from_be_bytes([*h1, *h0]));
        self.width = usize::from(u16::from_be_bytes([*w1, *w0]));
        let component = |c: &[u8]| Component {
            id: c[0],
            h: usize::from(c[1] >> 4),
            v: usize::from(c[1] & 15),
            quant: usize::from(c[2]),
            dc: 0,
            ac: 0,
        };
        self.components = components.chunks_exact(3).map(component).collect();
        Some(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total: usize = counts.iter().map(|c| usize::from(*c)).sum();
            let (symbols, rest) = rest.split_at_checked(total)?;
            let table = Table::new(counts, symbols)?;
            match kind >> 4 {
                0 => *self.dc.get_mut(usize::from(*kind))? = Some(table),
                1 => *self.ac.get_mut(usize::from(*kind & 15))? = Some(table.with_passes()),
                _ => return None,
            }
            segment = rest;
        }
        Some(())
    }

    fn quantisation(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = segment.split_first() {
            let wide = usize::from(kind >> 4);
            let (values, rest) = rest.split_at_checked(BLOCK * (1 + wide))?;
            let mut table = [0; BLOCK];
            match wide {
                0 => table.iter_mut().zip(values).for_each(|(to, v)| *to = u16::from(*v)),
                1 => table.iter_mut().zip(values.as_chunks().0).for_each(|(to, v)| *to = u16::from_be_bytes(*v)),
                _ => return None,
            }
            *self.quant.get_mut(usize::from(kind & 15))? = Some(table);
            segment = rest;
        }
        Some(())
    }

    /// One scan holds all components and all their coefficients.
    fn scan(&mut self, segment: &[u8]) -> Option<()> {
        let count = self.components.len();
        let (listed, selection) = segment.strip_prefix(&[count as u8])?.split_at_checked(2 * count)?;
        if selection != [0, 63, 0] {
            return None;
        }
        for (component, listed) in self.components.iter_mut().zip(listed.chunks_exact(2)) {
            if component.id != listed[0] {
                return None;
            }
            (component.dc, component.ac) = (usize::from(listed[1] >> 4), usize::from(listed[1] & 15));
        }
        Some(())
    }

    /// Grey, or Y Cb Cr without any doubt, whole ratios of sampling, and all tables there.
    fn is_usual(&self) -> bool {
        let ids: Vec<u8> = self.components.iter().map(|c| c.id).collect();
        let known = match (self.components.len(), self.adobe) {
            (1, None | Some(0)) => true,
            (3, Some(1)) => true,
            (3, None) => self.jfif || ids == [1, 2, 3],
            _ => false,
        };
        let (h, v) = self.sampling();
        let fits = |c: &Component| {
            let sampled = (1..=4).contains(&c.h) && (1..=4).contains(&c.v) && h % c.h == 0 && v % c.v == 0;
            let there = |tables: &[Option<Table>], i: usize| tables.get(i).is_some_and(Option::is_some);
            let quant = self.quant.get(c.quant).is_some_and(Option::is_some);
            sampled && quant && there(&self.dc, c.dc) && there(&self.ac, c.ac)
        };
        known && self.width > 0 && self.height > 0 && self.components.iter().all(fits)
    }

    /// The largest sampling factors.
    pub(super) fn sampling(&self) -> (usize, usize) {
        let most = |of: fn(&Component) -> usize| self.components.iter().map(of).max().unwrap_or(1);
        (most(|c| c.h), most(|c| c.v))
    }
}
